//! Sending images.
use crate::failure::{Failure, ensure};
use crate::world::World;

/// An archive's path as text.
pub(super) fn archive(world: &dyn World, name: &str) -> Result<String, Failure> {
    let path = world.archive(name)?;
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Failure::Unexpected(format!("{} is no text", path.display())))
}

pub(super) fn push(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    for name in ["web.tar", "client.tar"] {
        admin.ok(&["image", "push", &archive(world, name)?])?;
    }
    let list = admin.json(&["images"])?;
    let names: Vec<&str> =
        list.as_array().into_iter().flatten().filter_map(|image| image["name"].as_str()).collect();
    for name in ["web:latest", "client:latest"] {
        ensure(names.contains(&name), || format!("`wherry images` lacks {name}: {names:?}"))?;
    }
    let again = admin.run(&["image", "push", &archive(world, "web.tar")?])?.expect_code(0)?;
    let said = format!("{}{}", again.stdout, again.stderr);
    ensure(said.contains("already") || said.contains("0 B"), || {
        format!("a second push should say that nothing had to be sent: {said}")
    })
}

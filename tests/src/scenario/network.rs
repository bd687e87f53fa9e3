//! Who may talk to whom.
use super::view::{ContainerView, wait_for_state};
use crate::cli::Wherry;
use crate::failure::{Failure, ensure};
use crate::http::{free_port, get, get_through};
use crate::wait::until;
use crate::world::World;
use std::net::Ipv4Addr;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);
const FETCH_SECONDS: &str = "3";

/// `web` on the first node and `probe` on `probe_node`, both running. In worlds without an overlay both are on one
/// board.
fn start_pair(world: &dyn World) -> Result<ContainerView, Failure> {
    let admin = world.admin();
    let nodes = world.nodes();
    let first = nodes.first().cloned().unwrap_or_default();
    let other =
        if world.abilities().overlay { nodes.last().cloned().unwrap_or_default() } else { first.clone() };
    admin.ok(&["run", "-d", "--name", "web", "--node", &first, "web"])?;
    admin.ok(&["run", "-d", "--name", "probe", "--node", &other, "client", "sleep", "1d"])?;
    let web = wait_for_state(admin, "web", "running", SOON)?;
    let probe = wait_for_state(admin, "probe", "running", SOON)?;
    ensure(web.node == first && probe.node == other, || format!("placed wrongly: {web:?} {probe:?}"))?;
    Ok(web)
}

fn remove_pair(admin: &Wherry) -> Result<(), Failure> {
    admin.ok(&["rm", "-f", "web"])?;
    admin.ok(&["rm", "-f", "probe"]).map(drop)
}

/// Whether `probe` gets the page. Nothing in between: a timeout or a refusal is no page.
fn fetch(admin: &Wherry, url: &str) -> Result<Option<String>, Failure> {
    // Debian's static busybox crashes in `wget -T`.
    let fetch = ["exec", "probe", "--", "busybox", "timeout", FETCH_SECONDS, "wget", "-qO-", url];
    let outcome = admin.run(&fetch)?;
    Ok((outcome.code == 0).then_some(outcome.stdout))
}

pub(super) fn connections(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    let web = start_pair(world)?;
    let url = format!("http://{}/", web.address);
    // The server needs a moment to listen.
    until("the web server", SOON, || match admin.run(&["logs", "web"]) {
        Ok(outcome) if outcome.stderr.contains("server started") => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let url6 = format!("http://[{}]/", web.address6);
    for url in [&url, &url6] {
        ensure(fetch(admin, url)?.is_none(), || format!("{url} answers without a connection"))?;
    }
    admin.ok(&["connect", "probe", "web:80"])?;
    let page = until("the page after connect", SOON, || match fetch(admin, &url) {
        Ok(Some(page)) => Ok(page),
        other => Err(format!("{other:?}")),
    })?;
    ensure(page.to_lowercase().contains("<html") || page.contains("Wherry"), || {
        format!("the page is {page}")
    })?;
    ensure(fetch(admin, &url6)?.as_ref() == Some(&page), || format!("{url6} is not the same page"))?;
    let listed = admin.ok(&["connections"])?;
    ensure(listed.contains("probe") && listed.contains("web"), || format!("`wherry connections`: {listed}"))?;
    only_that_port_and_direction(world, &web)?;
    names(admin, &web)?;
    admin.ok(&["disconnect", "probe", "web:80"])?;
    for url in [&url, &url6] {
        ensure(fetch(admin, url)?.is_none(), || format!("{url} answers after disconnect"))?;
    }
    let lookup = admin.run(&["exec", "probe", "--", "busybox", "nslookup", "web"])?;
    ensure(!lookup.stdout.contains(&web.address), || {
        format!("the name is known after disconnect: {lookup:?}")
    })?;
    remove_pair(admin)
}

/// What `probe` may connect to it knows by name; `web` knows nobody.
fn names(admin: &Wherry, web: &ContainerView) -> Result<(), Failure> {
    let lookup = |from: &str, name: &str| admin.run(&["exec", from, "--", "busybox", "nslookup", name]);
    let found = lookup("probe", "web")?;
    ensure(found.code == 0 && found.stdout.contains(&web.address), || format!("nslookup web: {found:?}"))?;
    ensure(found.stdout.contains(&web.address6), || format!("nslookup web knows no IPv6: {found:?}"))?;
    let missing = lookup("probe", "probe")?;
    ensure(missing.code != 0, || format!("nslookup probe: {missing:?}"))?;
    let service = admin.run(&["connect", "label:app=probe", "service:web:81"])?;
    ensure(service.code == 0, || format!("a rule about labels: {service:?}"))?;
    let listed = admin.ok(&["connections"])?;
    ensure(listed.contains("label:service=web"), || format!("`wherry connections`: {listed}"))?;
    admin.ok(&["disconnect", "label:app=probe", "service:web:81"]).map(drop)
}

fn only_that_port_and_direction(world: &dyn World, web: &ContainerView) -> Result<(), Failure> {
    let admin = world.admin();
    let closed = fetch(admin, &format!("http://{}:81/", web.address))?;
    ensure(closed.is_none(), || "a port that is not connected answers".into())?;
    let ping = admin.run(&["exec", "probe", "--", "ping", "-c", "1", "-W", "2", &web.address])?;
    ensure(ping.code != 0, || "a connected container answers pings as well".into())
}

pub(super) fn tunnel(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    start_pair(world)?;
    let port = free_port()?;
    let tunnel = admin.start(&["tunnel", &port.to_string(), "web:80"])?;
    let page = until("the page through the tunnel", SOON, || {
        get((Ipv4Addr::LOCALHOST, port).into())
            .map_err(|error| format!("{error}; {}", tunnel.stderr()))
            .and_then(|page| {
                if page.starts_with("HTTP/1.") && page.contains(" 200 ") { Ok(page) } else { Err(page) }
            })
    })?;
    ensure(page.len() > 50, || format!("the page is {page}"))?;
    tunnel.interrupt()?;
    let port = free_port()?;
    let proxy = admin.start(&["proxy", &port.to_string()])?;
    let page = until("the page through the proxy", SOON, || {
        get_through((Ipv4Addr::LOCALHOST, port).into(), "web")
            .map_err(|error| format!("{error}; {}", proxy.stderr()))
    })?;
    ensure(page.contains(" 200 "), || format!("the page is {page}"))?;
    proxy.interrupt()?;
    remove_pair(admin)
}

//! The scenarios with real images in x86_64 virtual machines.
use wherry_images::disk::Arch;
use wherry_tests::{Vm, scenario};

#[test]
fn scenarios_in_x86_64_machines() {
    let outcome = Vm::start(Arch::X86_64, 2).and_then(|mut world| scenario::run(&mut world, scenario::ALL));
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

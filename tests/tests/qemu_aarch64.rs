//! A rich selection of the scenarios with real images in aarch64 virtual machines.
use wherry_images::disk::Arch;
use wherry_tests::{Vm, scenario};

#[test]
fn scenarios_in_aarch64_machines() {
    let outcome = Vm::start(Arch::Aarch64, 2).and_then(|mut world| scenario::run(&mut world, scenario::RICH));
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

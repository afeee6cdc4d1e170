//! Where guests can run.

/// Whether `test` can run guests here; else says why it is skipped.
pub(crate) fn kvm_or_skip(test: &str) -> bool {
    let kvm = beamline_vmm::probe::kvm();
    if !kvm.usable() {
        println!("skip: {test}: {kvm}");
    }
    kvm.usable()
}

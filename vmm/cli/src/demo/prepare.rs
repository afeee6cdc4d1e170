//! What has to be there before a demo starts anything.

use super::calibrate::budget;
use super::config::{Demo, Guest};
use super::files::{self, Budget, RunFiles};
use super::guests::Guests;
use super::place::Placement;
use crate::doctor;
use crate::failure::{refused, refused_by};
use beamline_mdev::config::HostConfig;
use std::path::{Path, PathBuf};

/// The guest image: as the command line says, else the configuration, else beside this program. Processes boot none:
/// theirs is only named in their files, and need not be there.
pub(crate) fn image(option: Option<&Path>, demo: &Demo, guests: Guests) -> anyhow::Result<PathBuf> {
    if guests == Guests::Process {
        if option.is_some() {
            return Err(refused(
                "--image: guests that are processes boot no image; mend: leave it out, or say --guests kvm",
            ));
        }
        return Ok(beside_program(&std::env::current_exe()?));
    }
    let image = match option.or(demo.image.as_deref()) {
        Some(path) => path.to_owned(),
        None => beside_program(&std::env::current_exe()?),
    };
    std::fs::canonicalize(&image).ok().filter(|path| path.is_file()).ok_or_else(|| {
        refused(format!(
            "there is no guest image at {}; mend: `make guest` builds it, or name one with --image",
            image.display()
        ))
    })
}

/// Cargo puts the program into `target/<profile>/` and the image, which is built for a named target with
/// a profile of its own, into `target/<target>/guest/`.
fn beside_program(program: &Path) -> PathBuf {
    let target = program.ancestors().nth(2).unwrap_or(Path::new("."));
    target.join("x86_64-unknown-linux-gnu/guest/beamline-microguest")
}

/// Whether guests, the GPU and the contracts are possible here, as far as can be told without a run. The
/// name of the GPU.
pub(crate) fn check(demo: &Demo, guests: Guests) -> anyhow::Result<String> {
    if guests == Guests::Kvm {
        doctor::require_kvm()?;
    }
    let gpu = doctor::require_vulkan(demo.gpu.adapter.as_deref())?;
    check_contracts(demo)?;
    Ok(gpu)
}

/// Admits the contracts as they would be if every scene took exactly the time it aims for: what is not
/// feasible then need not be calibrated.
fn check_contracts(demo: &Demo) -> anyhow::Result<()> {
    let slices: Vec<_> = demo
        .guests
        .iter()
        .map(|guest| {
            let targets: Vec<f64> = guest.jobs.iter().map(|job| job.target_ms).collect();
            (guest, budget(guest, &targets, demo))
        })
        .collect();
    admit(demo, &slices)
}

/// Refuses contracts that cannot be kept beside each other.
pub(crate) fn admit(demo: &Demo, slices: &[(&Guest, Budget)]) -> anyhow::Result<()> {
    let files = RunFiles { folder: PathBuf::new(), sockets: "/tmp".into() };
    let text = files::host_toml(&files, demo, "beamline", &Placement::of(&[0], false), slices)?;
    let host = HostConfig::parse(&text, Path::new("the demo's contracts")).map_err(refused_by)?;
    crate::host::admit(&host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_lies_beside_the_program() {
        let path = beside_program(Path::new("/x/target/release/beamline"));
        assert_eq!(path, Path::new("/x/target/x86_64-unknown-linux-gnu/guest/beamline-microguest"));
    }

    #[test]
    fn a_missing_image_says_how_to_mend_it() {
        let demo = Demo::load(None).unwrap();
        let error = image(Some(Path::new("/no/such/image")), &demo, Guests::Kvm).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), crate::failure::REFUSED);
        assert!(
            error.to_string().contains("/no/such/image")
                && error.to_string().contains("make guest")
        );
    }

    #[test]
    fn processes_need_no_image_and_take_none() {
        let demo = Demo::load(None).unwrap();
        assert!(image(None, &demo, Guests::Process).is_ok());
        let error = image(Some(Path::new("/img")), &demo, Guests::Process).unwrap_err();
        assert!(error.to_string().contains("--guests kvm"), "{error}");
    }

    #[test]
    fn the_built_in_contracts_are_feasible() {
        check_contracts(&Demo::load(None).unwrap()).unwrap();
    }

    #[test]
    fn an_infeasible_contract_is_refused_before_anything_runs() {
        let mut demo = Demo::load(None).unwrap();
        demo.guests[0].jobs[0].target_ms = 9.0;
        let error = check_contracts(&demo).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), crate::failure::REFUSED);
        assert!(error.to_string().contains("vr"), "{error}");
    }
}

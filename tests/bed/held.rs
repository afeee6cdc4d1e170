//! What a process holds, and which there are, by /proc.

use rustix::process::Pid;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Between two looks, and looks that have to be the same.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS: u32 = 10;

/// Descriptors by kind, and shared memory that is mapped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// How many of each kind.
    descriptors: BTreeMap<String, usize>,
    /// Mappings of memory files, and their bytes.
    mappings: (usize, u64),
}

impl Held {
    /// What this child of ours holds now.
    pub(crate) fn by(pid: Pid) -> Self {
        let pid = pid.as_raw_nonzero();
        let mut descriptors = BTreeMap::new();
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            // One that is closed meanwhile is none.
            let Ok(target) = std::fs::read_link(entry.unwrap().path()) else { continue };
            // `socket:[7]` and the like: of each the number differs.
            let kind = target.to_string_lossy().split('[').next().unwrap_or_default().to_owned();
            *descriptors.entry(kind).or_default() += 1;
        }
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let sizes = maps.lines().filter(|line| line.contains(" /memfd:")).map(|line| {
            let (start, rest) = line.split_once('-').expect("a range");
            let (end, _) = rest.split_once(' ').expect("a range");
            let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).unwrap());
            end - start
        });
        let sizes: Vec<u64> = sizes.collect();
        Self { descriptors, mappings: (sizes.len(), sizes.iter().sum()) }
    }
}

/// What this child of ours holds once it has closed what it was about to close: the control connection of a request
/// that has been answered ends a moment later.
pub(crate) fn at_rest(pid: Pid) -> Held {
    let (mut held, mut same) = (Held::by(pid), 0);
    while same < LOOKS {
        std::thread::sleep(LOOK);
        let now = Held::by(pid);
        same = if now == held { same + 1 } else { 0 };
        held = now;
    }
    held
}

/// Command lines of the processes that were told of `folder`.
pub(crate) fn naming(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().expect("its path is UTF-8");
    let entries = std::fs::read_dir("/proc").unwrap();
    // One that ends meanwhile is none; one that has ended has no command line.
    let lines = entries.filter_map(|e| std::fs::read(e.ok()?.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(folder)).collect()
}

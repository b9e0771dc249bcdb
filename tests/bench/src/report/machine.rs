//! What the machine is, as far as it matters, and what else it does.

use std::collections::BTreeMap;

/// Its facts by name.
pub(crate) fn machine() -> BTreeMap<String, String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let cores = std::thread::available_parallelism()
        .map(usize::from)
        .unwrap_or_default();
    let setting = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    BTreeMap::from([
        ("cpu".to_owned(), model(&cpu).to_owned()),
        ("cores".to_owned(), cores.to_string()),
        ("memory".to_owned(), gib(&memory)),
        ("kernel".to_owned(), setting("/proc/sys/kernel/osrelease")),
        (
            "congestion control".to_owned(),
            setting("/proc/sys/net/ipv4/tcp_congestion_control"),
        ),
    ])
}

fn model(cpuinfo: &str) -> &str {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    let model = line.and_then(|rest| rest.split(": ").nth(1));
    model.unwrap_or("unknown")
}

fn gib(meminfo: &str) -> String {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map_or("unknown".to_owned(), |kib| {
        format!("{} GiB", kib.div_ceil(1024 * 1024))
    })
}

/// Of the last minute: how many wanted a core, this program's own processes among them.
pub(crate) fn load_average() -> String {
    let averages = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    averages.split_whitespace().next().unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_and_memory_are_read_as_the_kernel_writes_them() {
        assert_eq!(
            model("processor\t: 0\nmodel name\t: AMD EPYC\nflags\t: x\n"),
            "AMD EPYC"
        );
        assert_eq!(gib("MemTotal:       24610000 kB\nMemFree: 1 kB\n"), "24 GiB");
        assert_eq!((model(""), gib("").as_str()), ("unknown", "unknown"));
    }
}

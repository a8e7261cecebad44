//! Two hosts on one machine: network namespaces joined by a pair of virtual interfaces, with a real `mpirun`
//! between them that reaches the second one through `ip netns exec` instead of ssh. Each has half of the cores.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use crate::command::{Outcome, binary, run_quickly, skip};

/// The hosts, which end with this value.
pub struct TwoHosts {
    folder: TempDir,
    namespaces: [String; 2],
    /// Of each host, as `taskset` writes them.
    cores: [String; 2],
}

/// Of the pairs of hosts that this process has made; tests run side by side.
static COUNT: AtomicUsize = AtomicUsize::new(0);

const NETWORK: &str = "10.77.41.0/24";
const ADDRESSES: [&str; 2] = ["10.77.41.1", "10.77.41.2"];

impl TwoHosts {
    /// Two hosts with `slots` ranks each and a link of `rate` (as `tc` writes it); `None`, said loudly, where
    /// namespaces cannot be made.
    ///
    /// # Panics
    /// When a namespace can be made, but not what belongs into it.
    #[must_use]
    pub fn set_up_or_skip(slots: usize, rate: &str) -> Option<TwoHosts> {
        let id = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let namespaces = [format!("wrn-{id}-a"), format!("wrn-{id}-b")];
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        if !ip(&["netns", "add", &namespaces[0]]) {
            skip("namespaces", "network namespaces cannot be made; it takes root and iproute2");
            return None;
        }
        let hosts = TwoHosts { folder, namespaces, cores: halves_of_the_cores() };
        let [first, second] = &hosts.namespaces;
        assert!(ip(&["netns", "add", second]), "a second namespace can be made where a first one was");
        let mut setup = vec![format!("link add eth0 netns {first} type veth peer name eth0 netns {second}")];
        for (namespace, address) in hosts.namespaces.iter().zip(ADDRESSES) {
            setup.push(format!("-n {namespace} address add {address}/24 dev eth0"));
            setup.push(format!("-n {namespace} link set eth0 up"));
            setup.push(format!("-n {namespace} link set lo up"));
        }
        for line in setup {
            assert!(ip(&line.split(' ').collect::<Vec<_>>()), "ip {line}");
        }
        for namespace in &hosts.namespaces {
            let limit = format!("qdisc add dev eth0 root tbf rate {rate} burst 256kb latency 50ms");
            let limited = Command::new("tc").args(["-n", namespace]).args(limit.split(' ')).status();
            assert!(limited.is_ok_and(|status| status.success()), "tc -n {namespace} {limit}");
        }
        // Called as ssh would be: host, then a command for its shell. Each host has a name of its own, since Open
        // MPI names the shared memory of a host's ranks after it, and mounts of its own.
        let agent = format!(
            "#!/bin/sh\nhost=$1; shift\ncase $host in\n{}) netns={second};;\n*) netns={first};;\nesac\n\
             exec ip netns exec \"$netns\" taskset -c {cores} unshare --uts --mount sh -c '\n\
             hostname \"$1\"; shift\n\
             if [ -e {hidden} ]; then mount --bind /dev/null \"$(cat {hidden})\"; fi\n\
             eval \"$*\"' sh \"$netns\" \"$@\"\n",
            ADDRESSES[1],
            cores = hosts.cores[1],
            hidden = hosts.hidden().display()
        );
        fs::write(hosts.agent(), agent).expect("the temporary folder is writable");
        fs::set_permissions(hosts.agent(), fs::Permissions::from_mode(0o700))
            .expect("own files can be changed");
        let file: String = ADDRESSES.iter().map(|address| format!("{address} slots={slots}\n")).collect();
        fs::write(hosts.host_file(), file).expect("the temporary folder is writable");
        Some(hosts)
    }

    fn agent(&self) -> PathBuf {
        self.folder.path().join("agent.sh")
    }

    /// Holds the path of the file that the second host finds empty.
    fn hidden(&self) -> PathBuf {
        self.folder.path().join("hidden")
    }

    /// From now on the second host finds `file` empty.
    ///
    /// # Panics
    /// When the temporary folder is not writable.
    pub fn empty_on_the_second(&self, file: &Path) {
        fs::write(self.hidden(), file.as_os_str().as_encoded_bytes())
            .expect("the temporary folder is writable");
    }

    /// Cuts the link between the hosts.
    ///
    /// # Panics
    /// When it cannot be cut.
    pub fn cut(&self) {
        assert!(ip(&["-n", &self.namespaces[1], "link", "set", "eth0", "down"]), "a link can be taken down");
    }

    /// Ids of the processes that still run on either host.
    #[must_use]
    pub fn left_behind(&self) -> Vec<String> {
        let ids = |namespace: &String| {
            let output = Command::new("ip").args(["netns", "pids", namespace]).output();
            output
                .map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let all: String = self.namespaces.iter().map(ids).collect();
        all.split_whitespace().map(str::to_owned).collect()
    }

    fn host_file(&self) -> PathBuf {
        self.folder.path().join("hosts")
    }

    /// Runs `wrn-dist` without MPI, with `slots` ranks on each host, that know of each other from environment variables.
    ///
    /// # Panics
    /// When a process cannot be started.
    #[must_use]
    pub fn wrn_dist_by_variables(&self, slots: usize, arguments: &[&str]) -> Vec<Outcome> {
        std::thread::scope(|scope| {
            let start = |rank: usize| {
                let (namespace, cores) = (&self.namespaces[rank / slots], &self.cores[rank / slots]);
                let mut command = Command::new("ip");
                command
                    .args(["netns", "exec", namespace, "taskset", "-c", cores, "unshare", "--uts"])
                    .args(["sh", "-c", "hostname \"$0\"; exec \"$@\"", namespace])
                    .arg(binary())
                    .args(arguments)
                    .env("RANK", rank.to_string())
                    .env("WORLD_SIZE", (2 * slots).to_string())
                    .env("MASTER_ADDR", ADDRESSES[0])
                    .env("MASTER_PORT", "29500");
                scope.spawn(move || run_quickly(command))
            };
            let processes: Vec<_> = (0..2 * slots).map(start).collect();
            processes.into_iter().map(|process| process.join().expect("the process has an outcome")).collect()
        })
    }

    /// Runs `wrn-dist` by `launch/mpirun/many-hosts.sh`, one rank a slot of every host.
    #[must_use]
    pub fn wrn_dist(&self, arguments: &[&str]) -> Outcome {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../launch/mpirun/many-hosts.sh");
        let first = &self.namespaces[0];
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", first, "taskset", "-c", &self.cores[0], "unshare", "--uts"])
            .args(["sh", "-c", "hostname \"$0\"; exec \"$@\"", first, "bash", script])
            .arg(self.host_file())
            .args(arguments)
            .env("BINARY", binary())
            .env("NETWORK", NETWORK)
            .env("OMPI_MCA_plm_rsh_agent", self.agent())
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        run_quickly(command)
    }
}

impl Drop for TwoHosts {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            ip(&["netns", "delete", namespace]);
        }
    }
}

/// Two lists of the cores that this process may use; both the same if there is but one.
fn halves_of_the_cores() -> [String; 2] {
    let status = fs::read_to_string("/proc/self/status").expect("Linux tells of every process");
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let number = |text: &str| text.trim().parse::<usize>().expect("proc(5): numbers and ranges of them");
    let cores: Vec<String> = (allowed.expect("proc(5): every process has this line").split(','))
        .flat_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            number(first)..=number(last)
        })
        .map(|core| core.to_string())
        .collect();
    let (first, second) = cores.split_at(cores.len() / 2);
    [if first.is_empty() { second } else { first }, second].map(|cores| cores.join(","))
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).output().is_ok_and(|output| output.status.success())
}

//! The real binary started by other means than `mpirun`: with ranks in environment variables, by hand or by
//! `torchrun`.

use std::net::TcpListener;
use std::process::Command;
use std::thread::{scope, sleep};
use std::time::Duration;

use crate::command::{Outcome, binary, run_quickly, skip};

/// How long after the one before each rank is started.
const BETWEEN_RANKS: Duration = Duration::from_millis(300);

/// One process of `wrn-dist` with these environment variables.
#[must_use]
pub fn wrn_dist_with_variables(variables: &[(&str, &str)], arguments: &[&str]) -> Outcome {
    let mut command = Command::new(binary());
    command.args(arguments).envs(variables.iter().copied());
    run_quickly(command)
}

/// Runs `wrn-dist` on `ranks` ranks, started one after the other, that know of each other from environment variables.
/// `environment` has more of these.
///
/// # Panics
/// When a process cannot be started.
#[must_use]
pub fn wrn_dist_by_variables(ranks: usize, arguments: &[&str], environment: &[(&str, &str)]) -> Vec<Outcome> {
    start_each(&vec![arguments; ranks], environment)
}

/// As [`wrn_dist_by_variables`], with arguments of its own for each rank.
///
/// # Panics
/// When a process cannot be started.
#[must_use]
pub fn wrn_dist_by_variables_each(arguments: &[&[&str]]) -> Vec<Outcome> {
    start_each(arguments, &[])
}

fn start_each(arguments: &[&[&str]], environment: &[(&str, &str)]) -> Vec<Outcome> {
    let ranks = arguments.len();
    let (port, world_size) = (free_port().to_string(), ranks.to_string());
    scope(|scope| {
        let start = |rank: usize| {
            sleep(BETWEEN_RANKS);
            let (port, world_size) = (&port, &world_size);
            scope.spawn(move || {
                let (arguments, rank) = (arguments[rank], rank.to_string());
                let variables = [
                    ("RANK", rank.as_str()),
                    ("WORLD_SIZE", world_size),
                    ("MASTER_ADDR", "127.0.0.1"),
                    ("MASTER_PORT", port),
                ];
                wrn_dist_with_variables(&[&variables[..], environment].concat(), arguments)
            })
        };
        // Rank 0, at which the others knock, comes last.
        let mut processes: Vec<_> = (1..ranks).chain([0]).map(start).collect();
        processes.rotate_right(1);
        processes.into_iter().map(|process| process.join().expect("the process has an outcome")).collect()
    })
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("this host has a loopback interface");
    listener.local_addr().expect("it is bound").port()
}

/// Runs `wrn-dist` on `ranks` ranks of this host under `torchrun`, with these environment variables.
#[must_use]
pub fn wrn_dist_by_torchrun(ranks: usize, arguments: &[&str], environment: &[(&str, &str)]) -> Outcome {
    let mut command = Command::new("python3");
    command
        .args(["-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node"])
        .arg(ranks.to_string())
        .arg(binary())
        .args(arguments)
        .envs(environment.iter().copied());
    run_quickly(command)
}

/// Whether `python3` has a PyTorch with `torchrun`; says so loudly when not.
#[must_use]
pub fn torchrun_or_skip() -> bool {
    let mut command = Command::new("python3");
    command.args(["-c", "import torch.distributed.run"]);
    let found = command.output().is_ok_and(|output| output.status.success());
    if !found {
        skip("python", "python3 lacks PyTorch and its torchrun");
    }
    found
}

//! Which rank this process is, as its launcher tells it, and where ranks stand. Starts no MPI and opens no connection.

use std::env;

use crate::CommError;
use crate::tcp::{MeetingPoint, TORCHRUN, rank_from_slurm, rank_from_variables};

/// The place of a process among the ranks of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// This process, from 0.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
    /// This process among the ranks on the same host, from 0.
    pub local_rank: usize,
    /// Number of ranks on the same host.
    pub local_size: usize,
    /// Name of the host.
    pub host: String,
}

/// What a launcher tells a process through environment variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchedRank {
    /// This process, from 0.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
    /// This process among the ranks on the same host; `None` where the launcher does not say.
    pub local_rank: Option<usize>,
    /// Name of the launcher, for messages.
    pub launcher: &'static str,
    /// How the ranks find each other.
    pub way: Way,
}

/// How ranks find each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Through the MPI library, which the launcher serves.
    Mpi,
    /// At a TCP address that all of them know.
    Tcp(MeetingPoint),
}

/// The variables of one MPI launcher.
struct Launcher {
    name: &'static str,
    rank: &'static str,
    world_size: &'static str,
    /// The first one that is set counts.
    local_rank: &'static [&'static str],
}

/// In order of precedence. Slurm's own variables stand beside those of the MPI that `srun` serves.
const MPI_LAUNCHERS: [Launcher; 3] = [
    Launcher {
        name: "Open MPI's mpirun",
        rank: "OMPI_COMM_WORLD_RANK",
        world_size: "OMPI_COMM_WORLD_SIZE",
        local_rank: &["OMPI_COMM_WORLD_LOCAL_RANK"],
    },
    Launcher {
        name: "a PMI launcher (MPICH's mpiexec or srun --mpi=pmi2)",
        rank: "PMI_RANK",
        world_size: "PMI_SIZE",
        local_rank: &["MPI_LOCALRANKID", "SLURM_LOCALID"],
    },
    Launcher {
        name: "srun --mpi=pmix",
        rank: "PMIX_RANK",
        world_size: "SLURM_STEP_NUM_TASKS",
        local_rank: &["SLURM_LOCALID"],
    },
];

/// The rank that a launcher gave to this process, from environment variables alone; `None` when it was
/// started by hand.
///
/// `torchrun` comes first: its workers inherit the variables of whatever started it, one rank a host, be it `mpirun`
/// or `srun --mpi=pmix`. Then MPI launchers: an `mpirun` inside a Slurm job starts its helpers through `srun`, so its
/// ranks see Slurm's variables as well. `RANK` and `WORLD_SIZE` come before Slurm's variables, since a script under
/// `srun` sets them. An MPI launcher's variables that hold no number, or a rank outside of the world, count
/// as absent.
///
/// # Errors
/// [`CommError::Environment`] when variables are missing, hold nonsense or contradict each other.
pub fn discover() -> Result<Option<LaunchedRank>, CommError> {
    discover_in(&|name| env::var(name).ok())
}

fn discover_in(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<LaunchedRank>, CommError> {
    let worker_of_torchrun = variable(TORCHRUN).is_some();
    if let Some(launched) = rank_under_mpi(variable).filter(|_| !worker_of_torchrun) {
        return Ok(Some(launched));
    }
    match rank_from_variables(variable)? {
        Some(launched) => Ok(Some(launched)),
        None => rank_from_slurm(variable),
    }
}

fn rank_under_mpi(variable: &dyn Fn(&str) -> Option<String>) -> Option<LaunchedRank> {
    let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
    MPI_LAUNCHERS.iter().find_map(|launcher| {
        let rank = number(launcher.rank)?;
        let world_size = number(launcher.world_size)?;
        let local_rank = launcher.local_rank.iter().find_map(|name| number(name));
        let name = launcher.name;
        (rank < world_size).then_some(LaunchedRank {
            rank,
            world_size,
            local_rank,
            launcher: name,
            way: Way::Mpi,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_launcher_is_recognised_by_its_own_variables() {
        let [open_mpi, pmi, pmix] = MPI_LAUNCHERS.each_ref().map(|launcher| launcher.name);
        let slurm_step = "SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=8 SLURM_LOCALID=0 SLURM_NTASKS=8 \
                          SLURM_JOB_ID=7 SLURM_STEP_NODELIST=n[1-8] ";
        let with_step = |more: &str| format!("{slurm_step}{more}");
        let by_hand = "RANK=2 WORLD_SIZE=8 MASTER_ADDR=n1 MASTER_PORT=29500";
        let cases = [
            ("by hand", String::new(), None),
            (
                "mpirun",
                "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1".into(),
                Some((3, 4, Some(1), open_mpi)),
            ),
            (
                "mpirun in a Slurm job",
                with_step("OMPI_COMM_WORLD_RANK=5 OMPI_COMM_WORLD_SIZE=6 OMPI_COMM_WORLD_LOCAL_RANK=2"),
                Some((5, 6, Some(2), open_mpi)),
            ),
            (
                "mpirun in a shell with other ranks' variables",
                format!("OMPI_COMM_WORLD_RANK=5 OMPI_COMM_WORLD_SIZE=6 {by_hand}"),
                Some((5, 6, None, open_mpi)),
            ),
            ("MPICH", "PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1".into(), Some((1, 2, Some(1), pmi))),
            ("srun --mpi=pmi2", with_step("PMI_RANK=7 PMI_SIZE=8"), Some((7, 8, Some(0), pmi))),
            ("PMI without a local rank", "PMI_RANK=1 PMI_SIZE=2".into(), Some((1, 2, None, pmi))),
            ("srun --mpi=pmix", with_step("PMIX_RANK=1"), Some((1, 8, Some(0), pmix))),
            ("srun", with_step(""), Some((1, 8, Some(0), "srun"))),
            (
                "the shell of sbatch",
                "SLURM_JOB_ID=7 SLURM_NTASKS=8 SLURM_PROCID=0 SLURM_LOCALID=0".into(),
                None,
            ),
            ("variables", by_hand.into(), Some((2, 8, None, "RANK and WORLD_SIZE"))),
            (
                "torchrun under srun --mpi=pmix",
                with_step(&format!("PMIX_RANK=1 TORCHELASTIC_RUN_ID=none {by_hand}")),
                Some((2, 8, None, "torchrun")),
            ),
            (
                "torchrun under mpirun",
                format!("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 TORCHELASTIC_RUN_ID=none {by_hand}"),
                Some((2, 8, None, "torchrun")),
            ),
            ("variables under srun", with_step(by_hand), Some((2, 8, None, "RANK and WORLD_SIZE"))),
            ("not a number", "OMPI_COMM_WORLD_RANK=one OMPI_COMM_WORLD_SIZE=4".into(), None),
            ("rank outside of the world", "PMI_RANK=2 PMI_SIZE=2 MPI_LOCALRANKID=0".into(), None),
        ];
        for (name, environment, expected) in cases {
            let found = discover_in(&|wanted| {
                environment.split_whitespace().find_map(|pair| {
                    let (variable, value) = pair.split_once('=')?;
                    (variable == wanted).then(|| value.to_owned())
                })
            });
            let found = found.unwrap();
            let is_mpi = found.as_ref().is_some_and(|rank| rank.way == Way::Mpi);
            let found = found.map(|rank| (rank.rank, rank.world_size, rank.local_rank, rank.launcher));
            assert_eq!(found, expected, "{name}");
            assert_eq!(is_mpi, found.is_some_and(|rank| [open_mpi, pmi, pmix].contains(&rank.3)), "{name}");
        }
    }
}

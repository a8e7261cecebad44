//! Which rank this is and where ranks meet, from the environment variables of `torchrun`, Kubernetes, a script, or
//! Slurm's `srun`. Opens no connection and resolves no name.

use std::str::FromStr;

use crate::{CommError, LaunchedRank, Way};

/// A text that every rank of a job may be given, without which rank 0 lets nobody in.
pub(crate) const TOKEN: &str = "WRN_DIST_TOKEN";
/// What `torchrun` alone sets for its workers: the name of the job.
pub(crate) const TORCHRUN: &str = "TORCHELASTIC_RUN_ID";

/// Where ranks that no MPI library knows meet, and as which job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeetingPoint {
    /// Names or addresses of rank 0's host, the likeliest first.
    pub(super) hosts: Vec<String>,
    /// Rank 0 takes the first of these that is free.
    pub(super) ports: Vec<u16>,
    /// What tells this job from others that may use the same ports; empty when nothing does.
    pub(super) job: String,
    /// Tells nodes of the launcher apart that are on one host.
    pub(super) node: String,
    /// Number of ranks on this node, if the launcher says so.
    pub(super) local_size: Option<usize>,
    /// The launcher says that all ranks are on one host.
    pub(super) one_host: bool,
    /// [`TOKEN`]; empty when there is none.
    pub(super) token: String,
}

/// More are a slip of the pen; of so many, tables of ranks still have room.
const MOST_RANKS: usize = 1 << 20;
/// With a port that may belong to somebody else, this many are tried.
const PORTS_TRIED: u16 = 4;
/// Where ports made from a Slurm job's number begin, and how many there are: below those that Linux gives to
/// outgoing connections.
const SLURM_PORTS: (u16, u64) = (20_000, 10_000);

type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The rank that `RANK`, `WORLD_SIZE` and the variables beside them name, as `torchrun` and Kubernetes set them.
pub(crate) fn rank_from_variables(variables: Variables) -> Result<Option<LaunchedRank>, CommError> {
    let (rank, world_size) = match (number(variables, "RANK")?, number(variables, "WORLD_SIZE")?) {
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(lonely("RANK", "WORLD_SIZE")),
        (None, Some(_)) => return Err(lonely("WORLD_SIZE", "RANK")),
        (Some(rank), Some(world_size)) => (rank, world_size),
    };
    limited("WORLD_SIZE", world_size)?;
    let local_rank = number(variables, "LOCAL_RANK")?;
    let local_size = number(variables, "LOCAL_WORLD_SIZE")?;
    inside("RANK", rank, "WORLD_SIZE", world_size)?;
    if let (Some(local_rank), Some(local_size)) = (local_rank, local_size) {
        inside("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_size)?;
    }
    if let Some(local_size) = local_size.filter(|&local_size| local_size > world_size) {
        return Err(wrong(format!("LOCAL_WORLD_SIZE={local_size} is more than WORLD_SIZE={world_size}")));
    }
    if let Some(tasks) =
        number(variables, "SLURM_STEP_NUM_TASKS")?.filter(|&tasks: &usize| tasks > world_size)
    {
        return Err(wrong(format!(
            "srun started {tasks} tasks, but WORLD_SIZE={world_size}: unset RANK and WORLD_SIZE to take the ranks from \
             Slurm, or let them count every task"
        )));
    }
    let torchrun = variables(TORCHRUN);
    let (hosts, ports) = if world_size == 1 {
        (Vec::new(), Vec::new())
    } else {
        let needed = |name: &str| {
            wrong(format!(
                "RANK and WORLD_SIZE={world_size} are set, but {name} is not: where do the ranks meet?"
            ))
        };
        let host = text(variables, "MASTER_ADDR").ok_or_else(|| needed("MASTER_ADDR"))?;
        let port = port(variables)?.ok_or_else(|| needed("MASTER_PORT"))?;
        // At the port itself, torchrun's own store listens.
        let taken = variables("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
        let beside = |distance| port.checked_add(distance).unwrap_or_else(|| port - distance);
        (vec![host], if taken { (1..=PORTS_TRIED).map(beside).collect() } else { vec![port] })
    };
    let job = torchrun.as_ref().map_or(String::new(), |run| {
        format!("torchrun {run}, start {}", variables("TORCHELASTIC_RESTART_COUNT").unwrap_or_default())
    });
    let point = MeetingPoint {
        hosts,
        ports,
        job,
        node: variables("GROUP_RANK").unwrap_or_default(),
        local_size,
        one_host: local_size == Some(world_size),
        token: variables(TOKEN).unwrap_or_default(),
    };
    let launcher = if torchrun.is_some() { "torchrun" } else { "RANK and WORLD_SIZE" };
    Ok(Some(LaunchedRank { rank, world_size, local_rank, launcher, way: Way::Tcp(point) }))
}

/// The rank of a task that `srun` started. Only `SLURM_STEP_NUM_TASKS` is taken for the number of ranks: the shell
/// of `sbatch` or `salloc` has `SLURM_NTASKS` and even `SLURM_PROCID`, although it is a single process.
pub(crate) fn rank_from_slurm(variables: Variables) -> Result<Option<LaunchedRank>, CommError> {
    let (Some(rank), Some(world_size)) =
        (number(variables, "SLURM_PROCID")?, number(variables, "SLURM_STEP_NUM_TASKS")?)
    else {
        return Ok(None);
    };
    inside("SLURM_PROCID", rank, "SLURM_STEP_NUM_TASKS", world_size)?;
    limited("SLURM_STEP_NUM_TASKS", world_size)?;
    let local_rank = number(variables, "SLURM_LOCALID")?;
    let id = |name| number::<u64>(variables, name).map(Option::unwrap_or_default);
    let (job, step, start) = (id("SLURM_JOB_ID")?, id("SLURM_STEP_ID")?, id("SLURM_RESTART_COUNT")?);
    let hosts = match text(variables, "MASTER_ADDR") {
        Some(host) => vec![host],
        // Rank 0 is on the first node of the step. Where names of nodes are no names of hosts, the address of the
        // node that srun was called on, in a batch job the first one, is a second chance.
        None => {
            let first = text(variables, "SLURM_STEP_NODELIST").and_then(|nodes| first_node(&nodes));
            first.into_iter().chain(text(variables, "SLURM_LAUNCH_NODE_IPADDR")).collect()
        }
    };
    if hosts.is_empty() && world_size > 1 {
        let nodes = variables("SLURM_STEP_NODELIST").unwrap_or_default();
        return Err(wrong(format!(
            "SLURM_STEP_NODELIST={nodes} does not say where rank 0 is: set MASTER_ADDR to the host of rank 0"
        )));
    }
    let (first_port, ports) = SLURM_PORTS;
    let derived = |attempt: u16| {
        let offset = (job.wrapping_mul(16).wrapping_add(step * 4) + u64::from(attempt)) % ports;
        first_port + offset as u16
    };
    let ports = port(variables)?.map_or_else(|| (0..PORTS_TRIED).map(derived).collect(), |port| vec![port]);
    let point = MeetingPoint {
        hosts,
        ports,
        job: format!("Slurm job {job}.{step}, start {start}"),
        node: variables("SLURM_NODEID").unwrap_or_default(),
        local_size: None,
        one_host: variables("SLURM_STEP_NUM_NODES").is_some_and(|nodes| nodes == "1"),
        token: variables(TOKEN).unwrap_or_default(),
    };
    Ok(Some(LaunchedRank { rank, world_size, local_rank, launcher: "srun", way: Way::Tcp(point) }))
}

/// The first name of a list as Slurm writes it: `n[01-16,20],m7` begins with `n01`.
fn first_node(nodes: &str) -> Option<String> {
    let mut name = String::new();
    let mut rest = nodes.chars();
    while let Some(character) = rest.next() {
        match character {
            ',' => break,
            '[' => {
                let inside: Vec<char> = rest.by_ref().take_while(|&character| character != ']').collect();
                name.extend(inside.iter().take_while(|character| !matches!(character, '-' | ',')));
            }
            _ => name.push(character),
        }
    }
    (!name.is_empty()).then_some(name)
}

fn wrong(sentence: String) -> CommError {
    CommError::Environment(sentence)
}

fn lonely(given: &str, missing: &str) -> CommError {
    wrong(format!(
        "{given} is set, but {missing} is not: set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT to start one of several \
         ranks, or none of them"
    ))
}

fn inside(name: &str, value: usize, of: &str, count: usize) -> Result<(), CommError> {
    if value < count {
        return Ok(());
    }
    Err(wrong(format!("{name}={value} is not among {of}={count} ranks, which count from 0")))
}

fn limited(name: &str, world_size: usize) -> Result<(), CommError> {
    if world_size <= MOST_RANKS {
        return Ok(());
    }
    Err(wrong(format!("{name}={world_size} is out of range; expected 1 to {MOST_RANKS} ranks")))
}

/// Variables that are empty count as absent.
fn text(variables: Variables, name: &str) -> Option<String> {
    variables(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn number<T: FromStr>(variables: Variables, name: &str) -> Result<Option<T>, CommError> {
    let Some(value) = text(variables, name) else { return Ok(None) };
    match value.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(wrong(format!("{name}={value}: expected a whole number"))),
    }
}

fn port(variables: Variables) -> Result<Option<u16>, CommError> {
    let Some(value) = text(variables, "MASTER_PORT") else { return Ok(None) };
    match value.parse() {
        Ok(port) if port > 0 => Ok(Some(port)),
        _ => Err(wrong(format!("MASTER_PORT={value}: expected a port between 1 and 65535"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(
        from: fn(Variables) -> Result<Option<LaunchedRank>, CommError>,
        environment: &str,
    ) -> Result<Option<LaunchedRank>, String> {
        let lookup = |wanted: &str| {
            let mut pairs = environment.split_whitespace().filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, _)| *name == wanted).map(|(_, value)| value.to_owned())
        };
        from(&lookup).map_err(|error| error.to_string())
    }

    fn point(launched: LaunchedRank) -> MeetingPoint {
        match launched.way {
            Way::Tcp(point) => point,
            Way::Mpi => panic!("ranks meet over TCP"),
        }
    }

    #[test]
    fn names_of_nodes_are_expanded_to_the_first() {
        let cases = [
            ("n1", Some("n1")),
            ("n[1-2]", Some("n1")),
            ("n[007-128,200],m1", Some("n007")),
            ("n5,m[1-2]", Some("n5")),
            ("rack[2-3]n[01-16]", Some("rack2n01")),
            ("n[3,5]-ib", Some("n3-ib")),
            ("", None),
        ];
        for (nodes, first) in cases {
            assert_eq!(first_node(nodes).as_deref(), first, "{nodes}");
        }
    }

    #[test]
    fn ranks_meet_at_the_given_address() {
        let hand = "RANK=1 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=node1 MASTER_PORT=29500";
        let launched = read(rank_from_variables, hand).unwrap().unwrap();
        assert_eq!((launched.rank, launched.world_size, launched.local_rank), (1, 4, Some(1)));
        let at = point(launched);
        assert_eq!((at.hosts, at.ports, at.local_size), (vec!["node1".into()], vec![29500], Some(2)));
        assert!(!at.one_host);

        let torchrun = format!("{hand} TORCHELASTIC_RUN_ID=none TORCHELASTIC_RESTART_COUNT=2");
        let with_store = format!("{torchrun} TORCHELASTIC_USE_AGENT_STORE=True GROUP_RANK=1");
        let launched = read(rank_from_variables, &with_store).unwrap().unwrap();
        assert_eq!(launched.launcher, "torchrun");
        let at = point(launched);
        assert_eq!(at.ports, [29501, 29502, 29503, 29504], "beside torchrun's own store");
        assert_eq!((at.job.as_str(), at.node.as_str()), ("torchrun none, start 2", "1"));
        let last = with_store.replace("29500", "65534");
        assert_eq!(
            point(read(rank_from_variables, &last).unwrap().unwrap()).ports,
            [65535, 65532, 65531, 65530]
        );
        let without = format!("{torchrun} TORCHELASTIC_USE_AGENT_STORE=False");
        assert_eq!(point(read(rank_from_variables, &without).unwrap().unwrap()).ports, [29500]);

        assert_eq!(read(rank_from_variables, "MASTER_ADDR=node1"), Ok(None));
        assert!(read(rank_from_variables, "RANK=0 WORLD_SIZE=1").unwrap().is_some(), "alone it meets nobody");
    }

    #[test]
    fn tasks_of_srun_meet_on_the_first_node_at_a_port_of_their_step() {
        let step = "SLURM_JOB_ID=700 SLURM_STEP_ID=2 SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=1 \
                    SLURM_NODEID=1 SLURM_STEP_NODELIST=n[1-2] SLURM_STEP_NUM_NODES=2 SLURM_LAUNCH_NODE_IPADDR=10.0.0.1";
        let launched = read(rank_from_slurm, step).unwrap().unwrap();
        assert_eq!((launched.rank, launched.world_size, launched.local_rank), (3, 4, Some(1)));
        let at = point(launched);
        assert_eq!(at.hosts, ["n1", "10.0.0.1"]);
        assert_eq!(at.ports, [21208, 21209, 21210, 21211]);
        assert_eq!((at.node.as_str(), at.one_host), ("1", false));
        assert_eq!(at.job, "Slurm job 700.2, start 0");

        let given = format!("{step} MASTER_ADDR=login MASTER_PORT=4000 SLURM_RESTART_COUNT=1");
        let at = point(read(rank_from_slurm, &given).unwrap().unwrap());
        assert_eq!((at.hosts, at.ports), (vec!["login".into()], vec![4000]));
        assert_eq!(at.job, "Slurm job 700.2, start 1");
        assert_eq!(read(rank_from_slurm, "SLURM_PROCID=0 SLURM_NTASKS=4"), Ok(None), "the shell of sbatch");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_sentence() {
        let meeting = "MASTER_ADDR=node1 MASTER_PORT=29500";
        let cases = [
            ("RANK=0", "RANK is set, but WORLD_SIZE is not"),
            ("WORLD_SIZE=2", "WORLD_SIZE is set, but RANK is not"),
            ("RANK=zero WORLD_SIZE=2", "RANK=zero: expected a whole number"),
            ("RANK=2 WORLD_SIZE=2", "RANK=2 is not among WORLD_SIZE=2 ranks"),
            ("RANK=0 WORLD_SIZE=0", "RANK=0 is not among WORLD_SIZE=0 ranks"),
            (
                "RANK=0 WORLD_SIZE=1000000000",
                "WORLD_SIZE=1000000000 is out of range; expected 1 to 1048576 ranks",
            ),
            ("RANK=0 WORLD_SIZE=2 MASTER_PORT=29500", "but MASTER_ADDR is not"),
            ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=node1", "but MASTER_PORT is not"),
            ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=node1 MASTER_PORT=70000", "MASTER_PORT=70000: expected a port"),
            (
                "RANK=0 WORLD_SIZE=2 LOCAL_RANK=2 LOCAL_WORLD_SIZE=2",
                "LOCAL_RANK=2 is not among LOCAL_WORLD_SIZE=2",
            ),
            ("RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=4", "LOCAL_WORLD_SIZE=4 is more than WORLD_SIZE=2"),
            ("RANK=0 WORLD_SIZE=1 SLURM_STEP_NUM_TASKS=4", "srun started 4 tasks, but WORLD_SIZE=1"),
        ];
        for (environment, part) in cases {
            // A meeting point makes no difference to those that have another fault.
            let whole = if environment.contains("MASTER") {
                environment.into()
            } else {
                format!("{environment} {meeting}")
            };
            let sentence = read(rank_from_variables, &whole).unwrap_err();
            assert!(sentence.contains(part), "{environment}: {sentence}");
        }
        let nowhere = read(rank_from_slurm, "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2").unwrap_err();
        assert!(nowhere.contains("set MASTER_ADDR"), "{nowhere}");
    }
}

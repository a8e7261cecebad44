//! `wrn-dist doctor`: what this machine and this build can do, in sentences.

use std::fmt::Write;

use allreduce::{Communicator, LaunchedRank, MpiCommunicator, Reduction, Way};

use crate::device::usable_cores;

/// Describes the machine and the build.
#[must_use]
pub fn doctor() -> String {
    let versions = torch_ext::runtime::versions();
    let devices = torch_ext::runtime::device_count();
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<14}{value}");
    };
    line("wrn-dist", env!("CARGO_PKG_VERSION").to_owned());
    line("libtorch", versions.torch);
    line(
        "CUDA",
        match (versions.cuda_linked, versions.cuda) {
            (true, Some(cuda)) => format!("{cuda}, linked into this binary"),
            (true, None) => "linked into this binary, version unknown".into(),
            (false, _) => {
                "not linked: this libtorch is a CPU build, or the linker dropped libtorch_cuda".into()
            }
        },
    );
    line(
        "streams",
        if versions.cuda_headers {
            "CUDA streams and events are compiled in".into()
        } else {
            "built without CUDA headers: no streams or events".into()
        },
    );
    line(
        "GPUs",
        match devices {
            0 => "none found; training runs on the CPU".into(),
            count => format!("{count}"),
        },
    );
    line("cores", format!("{} usable by this process", usable_cores()));
    let launched = allreduce::discover();
    line(
        "launcher",
        match &launched {
            Ok(Some(launched)) => {
                format!("{}: rank {} of {}", launched.launcher, launched.rank, launched.world_size)
            }
            Ok(None) => "none: this process stands alone".into(),
            Err(error) => format!("unclear: {error}"),
        },
    );
    let mpi = match launched {
        // Open MPI ends a process of srun, unless that speaks its own kind of PMI.
        Ok(Some(LaunchedRank { way: Way::Tcp(_), .. })) => {
            "not started: the ranks were launched without it and talk over TCP".into()
        }
        _ => match MpiCommunicator::initialize(Reduction::Ordered) {
            Ok(mut comm) => {
                let description = comm.description();
                match comm.finalize() {
                    Ok(()) => description,
                    Err(error) => format!("{description}, but it does not end in order: {error}"),
                }
            }
            Err(error) => format!("does not start: {error}"),
        },
    };
    line("MPI", mpi);
    line(
        "NCCL",
        match nccl_rs::Library::load() {
            Ok(library) => format!("{} at {}", library.version(), library.path().display()),
            Err(error) => error.to_string(),
        },
    );
    text
}

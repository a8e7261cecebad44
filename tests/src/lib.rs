//! What the end-to-end tests share: running the real binary alone or under `mpirun`, small data sets made
//! on the spot, and reading what a run wrote. Asserts nothing by itself but what all failures have in common.

mod command;
mod dataset;
mod failure;
mod hosts;
mod launchers;
mod photos;
mod run;
mod slurm;
mod straggler;

pub use command::{
    Outcome, Running, binary, mpirun_or_skip, python_module_or_skip, python_or_skip, run_python, skip,
    start_one_host_script, start_wrn_dist, wrn_dist, wrn_dist_for_long, wrn_dist_in_environment,
    wrn_dist_in_session,
};
pub use dataset::{FashionMnist, write_fashion_mnist};
pub use failure::{MOMENTS, expect_failure, expect_gone, expect_parts, the_sentence};
pub use hosts::TwoHosts;
pub use launchers::{
    torchrun_or_skip, wrn_dist_by_torchrun, wrn_dist_by_variables, wrn_dist_by_variables_each,
    wrn_dist_with_variables,
};
pub use photos::{prepare_photos, small_recipe};
pub use run::{Experiment, metrics_without_times};
pub use slurm::{SlurmCluster, SlurmJob};
pub use straggler::{expect_straggler, steady_experiment};

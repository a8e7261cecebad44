//! `wrn-dist bench`, one module a measurement.

mod all_reduce;
mod data;
mod model;
mod step;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// The parts of a training step, with the exchange of gradients and without
    Step(step::Arguments),
    /// Images a second of the decoder pool, as normalised fp32 batches, and where its threads spend their time
    Data(data::Arguments),
    /// Memory and time of a training step of a network on the CPU, in each memory mode
    Model(model::Arguments),
    /// The sum over all ranks by itself, for a range of sizes
    Allreduce(all_reduce::Arguments),
}

pub(crate) fn run(arguments: Arguments) -> i32 {
    match arguments.command {
        Command::Step(arguments) => step::run(arguments),
        Command::Data(arguments) => data::run(arguments),
        Command::Model(arguments) => model::run(&arguments),
        Command::Allreduce(arguments) => all_reduce::run(&arguments),
    }
}

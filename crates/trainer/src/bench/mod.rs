//! The standard measurements of `wrn-dist bench`, as tables and as JSON.

mod all_reduce;
mod data;
mod model;
mod step;

pub use all_reduce::{AllReduceBench, AllReduceOptions, bench_all_reduce};
pub use data::{DataBench, DataBenchOptions, DataBenchSource, DecodeTimes, DecoderTimes, bench_data};
pub use model::{ModelBench, ModelBenchOptions, bench_model};
pub use step::{BenchOptions, StepBench, bench_step};

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[len / 2],
        len => 0.5 * (values[len / 2 - 1] + values[len / 2]),
    }
}

//! What the owner of the gradients does with each bucket on the communication thread: exchange it in another way
//! than by one sum, and use its averages before the other buckets have theirs. What that needs to know of tensors is
//! the owner's business.

use crate::CommError;

/// Replaces values by their sums over all ranks, which have the same bits on every rank. All ranks call it with the
/// same lengths in the same order.
pub type Sum<'a> = dyn FnMut(&mut [f32]) -> Result<(), CommError> + 'a;

/// Called for one bucket after the other, in the order of their indices, on the communication thread.
pub trait BucketHook: Send {
    /// Whether [`BucketHook::all_reduce`] takes the place of the plain sum. It works on gradients in host memory only; on a
    /// device the exchange of such a bucket fails.
    fn exchanges(&self) -> bool {
        false
    }

    /// Replaces `values`, this rank's part of the segments of bucket `bucket`, by their sum over all ranks or by an
    /// approximation of it that has the same bits on every rank. They are scaled, so that the sum is the average.
    /// Elements between segments are padding: they are zero, and stay so.
    ///
    /// # Errors
    /// Those of `sum`.
    fn all_reduce(&mut self, bucket: usize, values: &mut [f32], sum: &mut Sum<'_>) -> Result<(), CommError> {
        let _ = bucket;
        sum(values)
    }

    /// The gradients of bucket `bucket` are averages now, and nobody else touches them until this returns. Not called
    /// any more in a step in which an average is infinite or NaN, from that bucket on: on all ranks alike, unless averages are
    /// sharded. On a device nobody looks, unless such averages are counted there
    /// ([`ReducerOptions::not_finite`](crate::ReducerOptions::not_finite)).
    ///
    /// # Errors
    /// Whatever makes it impossible to go on with this step.
    fn averaged(&mut self, bucket: usize) -> Result<(), CommError> {
        let _ = bucket;
        Ok(())
    }
}

//! What the exchange over NCCL does with memory beside NCCL, by libtorch's kernels: on a GPU on a stream of its own
//! beside the computation, on the CPU at once.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use allreduce::{ExchangeDevice, Moment, Now, Ready, Region, RegionDevice, Wire};
use tch::{Device, Kind, TchError, Tensor};
use torch_ext::cuda::{Event, Stream, StreamGuard, set_device};

use crate::error::Error;

/// What the exchange does on `device`, and how it learns what is computed there.
///
/// # Errors
/// When the device has no streams.
pub(crate) fn exchange_device(device: Device) -> Result<RegionDevice, Error> {
    let device = TensorDevice::new(device)?;
    let stream = device.stream;
    let mark = move || match stream {
        Some(exchange) => mark(exchange).map_err(|error| error.to_string()),
        None => Ok(Box::new(|| Ok(())) as Ready),
    };
    Ok(RegionDevice::new(device, mark))
}

/// The memory of a flat fp32 tensor, exchanged where it lies, on `device`. The tensor stays alive as long as the region
/// does.
///
/// # Errors
/// When the tensor is not a contiguous fp32 vector.
pub(crate) fn region_on_device(tensor: &Tensor, device: &RegionDevice) -> Result<Region, Error> {
    let fits = tensor.kind() == Kind::Float && tensor.dim() == 1 && tensor.is_contiguous();
    let start = NonNull::new(tensor.data_ptr().cast::<f32>());
    let (true, Some(start)) = (fits, start) else {
        return Err(Error::Other(format!(
            "the exchange needs a contiguous fp32 vector, not {:?} of shape {:?}",
            tensor.kind(),
            tensor.size()
        )));
    };
    let owner = Arc::new(Mutex::new(tensor.shallow_clone()));
    // SAFETY: pointer and length are those of a live contiguous fp32 tensor of the device, whose storage `owner` keeps
    // alive. Backward queues what fills a bucket on the stream of the thread that marks it ready, and `mark` notes how
    // far that is. From there on until `Reducer::launch` has held that stream nobody else touches it; nor anything else until
    // an operation's arrival has.
    Ok(unsafe { Region::on_device(start, tensor.numel(), owner, device.clone()) })
}

/// Notes how far this thread's stream is; the exchange will wait for that.
fn mark(exchange: Stream) -> Result<Ready, torch_ext::Error> {
    let mut computed = Event::new()?;
    computed.record(Stream::current(exchange.device())?)?;
    Ok(Box::new(move || computed.block(exchange).map_err(|error| error.to_string())))
}

/// A device of libtorch.
struct TensorDevice {
    device: Device,
    /// On a GPU.
    stream: Option<Stream>,
}

/// A point of the exchange's stream.
struct StreamMoment {
    event: Event,
    gpu: usize,
}

impl Moment for StreamMoment {
    fn has_come(&mut self) -> Result<bool, String> {
        self.event.is_done().map_err(|error| error.to_string())
    }

    fn hold_caller(&mut self) -> Result<(), String> {
        let held = Stream::current(self.gpu).and_then(|stream| self.event.block(stream));
        held.map_err(|error| error.to_string())
    }
}

impl TensorDevice {
    fn new(device: Device) -> Result<Self, Error> {
        let stream = match device {
            // Ahead of the computation, whose end waits for the exchange.
            Device::Cuda(index) => Some(Stream::from_pool(index, true)?),
            _ => None,
        };
        Ok(TensorDevice { device, stream })
    }

    /// Until the guard goes, operations of this thread are queued on the exchange's stream.
    fn enter(&self) -> Result<Option<StreamGuard>, Failure> {
        Ok(self.stream.map(Stream::enter).transpose()?)
    }

    /// A view of memory of the device.
    ///
    /// # Safety
    /// The memory holds as many elements, as long as the tensor lives.
    unsafe fn view(&self, start: *const c_void, shape: &[i64], kind: Kind) -> Result<Tensor, Failure> {
        let strides: Vec<i64> =
            (0..shape.len()).map(|dimension| shape[dimension + 1..].iter().product()).collect();
        // SAFETY: the caller's promise.
        Ok(unsafe { Tensor::f_from_blob(start.cast(), shape, &strides, kind, self.device) }?)
    }

    /// Queues a copy of `len` elements, from one number format to another.
    ///
    /// # Safety
    /// Both are memory of the device until the stream has passed the operation.
    unsafe fn copy(
        &mut self,
        (from, from_kind): (*const c_void, Kind),
        (to, to_kind): (*mut c_void, Kind),
        len: usize,
    ) -> Result<(), Failure> {
        let _stream = self.enter()?;
        // SAFETY: the caller's promise.
        unsafe {
            let values = self.view(from, &[len as i64], from_kind)?;
            self.view(to, &[len as i64], to_kind)?.f_copy_(&values)?;
        }
        Ok(())
    }
}

/// A failure of libtorch, as a sentence.
struct Failure(String);

impl From<TchError> for Failure {
    fn from(error: TchError) -> Self {
        Failure(error.to_string())
    }
}

impl From<torch_ext::Error> for Failure {
    fn from(error: torch_ext::Error) -> Self {
        Failure(error.to_string())
    }
}

impl From<Failure> for String {
    fn from(failure: Failure) -> Self {
        failure.0
    }
}

fn kind(wire: Wire) -> Kind {
    match wire {
        Wire::Fp32 => Kind::Float,
        Wire::Bf16 => Kind::BFloat16,
        Wire::Fp16 => Kind::Half,
    }
}

/// Adds neighbouring rows, then neighbouring sums, and so on, into the first one.
fn add_rows(rows: &Tensor, count: usize) -> Result<(), Failure> {
    let mut distance = 1;
    while distance < count {
        for left in (0..count - distance).step_by(2 * distance) {
            let right = rows.f_get((left + distance) as i64)?;
            let _ = rows.f_get(left as i64)?.f_add_(&right)?;
        }
        distance *= 2;
    }
    Ok(())
}

// SAFETY: operations of libtorch on tensors that are views of the memory; on a GPU they are queued on one stream, and
// moments are events behind all of them. On the CPU they are done when they return.
unsafe impl ExchangeDevice for TensorDevice {
    fn stream(&mut self) -> Result<*mut c_void, String> {
        let Some(stream) = self.stream else { return Ok(std::ptr::null_mut()) };
        set_device(stream.device()).map_err(|error| error.to_string())?;
        stream.handle().map_err(|error| error.to_string())
    }

    unsafe fn round(
        &mut self,
        values: *const f32,
        rounded: *mut c_void,
        len: usize,
        wire: Wire,
    ) -> Result<(), String> {
        // SAFETY: the caller's promise.
        Ok(unsafe { self.copy((values.cast(), Kind::Float), (rounded, kind(wire)), len) }?)
    }

    unsafe fn widen(
        &mut self,
        rounded: *const c_void,
        values: *mut f32,
        len: usize,
        wire: Wire,
    ) -> Result<(), String> {
        // SAFETY: the caller's promise.
        Ok(unsafe { self.copy((rounded, kind(wire)), (values.cast(), Kind::Float), len) }?)
    }

    unsafe fn sum_rows(
        &mut self,
        rows: *mut c_void,
        count: usize,
        stride: usize,
        len: usize,
        wire: Wire,
    ) -> Result<(), String> {
        if len == 0 {
            return Ok(());
        }
        let sum = || {
            let _stream = self.enter()?;
            // SAFETY: the caller's promise.
            let rows = unsafe { self.view(rows, &[count as i64, stride as i64], kind(wire)) }?;
            let rows = rows.f_narrow(1, 0, len as i64)?;
            match wire {
                Wire::Fp32 => add_rows(&rows, count),
                Wire::Bf16 | Wire::Fp16 => {
                    let wide = rows.f_to_kind(Kind::Float)?;
                    add_rows(&wide, count)?;
                    rows.f_get(0)?.f_copy_(&wide.f_get(0)?)?;
                    Ok(())
                }
            }
        };
        Ok(sum()?)
    }

    unsafe fn scale(&mut self, values: *mut f32, len: usize, factor: f32) -> Result<(), String> {
        let scale = || {
            let _stream = self.enter()?;
            // SAFETY: the caller's promise.
            let mut values = unsafe { self.view(values.cast_const().cast(), &[len as i64], Kind::Float) }?;
            let _ = values.f_mul_scalar_(f64::from(factor))?;
            Ok::<(), Failure>(())
        };
        Ok(scale()?)
    }

    unsafe fn count_not_finite(
        &mut self,
        values: *const f32,
        len: usize,
        count: *mut f32,
    ) -> Result<(), String> {
        let look = || {
            let _stream = self.enter()?;
            // SAFETY: the caller's promise.
            let (values, mut count) = unsafe {
                let values = self.view(values.cast(), &[len as i64], Kind::Float)?;
                (values, self.view(count.cast_const().cast(), &[1], Kind::Float)?)
            };
            // A sum of products with zero is zero, or NaN if one of them is.
            let found = values.f_mul_scalar(0.0)?.f_sum(Kind::Float)?.f_ne(0.0)?;
            let _ = count.f_add_(&found.f_to_kind(Kind::Float)?)?;
            Ok::<(), Failure>(())
        };
        Ok(look()?)
    }

    unsafe fn read(&mut self, value: *const f32) -> Result<f32, String> {
        let read = || {
            let _stream = self.enter()?;
            // SAFETY: the caller's promise.
            let value = unsafe { self.view(value.cast(), &[1], Kind::Float) }?;
            Ok::<f32, Failure>(value.f_double_value(&[0])? as f32)
        };
        Ok(read()?)
    }

    fn mark(&mut self) -> Result<Box<dyn Moment>, String> {
        let Some(stream) = self.stream else { return Ok(Box::new(Now)) };
        let marked = Event::new().and_then(|mut event| event.record(stream).map(|()| event));
        let event = marked.map_err(|error| error.to_string())?;
        Ok(Box::new(StreamMoment { event, gpu: stream.device() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The operations one after the other on the CPU, against sums by the definition.
    #[test]
    fn rows_are_summed_in_the_tree_s_order_in_every_format() {
        let (count, stride, len) = (5, 7, 6);
        for wire in [Wire::Fp32, Wire::Bf16, Wire::Fp16] {
            let mut device = TensorDevice::new(Device::Cpu).unwrap();
            assert_eq!(device.stream(), Ok(std::ptr::null_mut()));
            let values: Vec<f32> =
                (0..count * stride).map(|index| ((index * 37 % 101) as f32 / 7.0).exp2()).collect();
            let mut rows = vec![0u32; count * stride];
            let place: *mut c_void = rows.as_mut_ptr().cast();
            let mut sums = vec![0.0f32; len];
            // SAFETY: the vectors live on, and are long enough.
            unsafe {
                device.round(values.as_ptr(), place, values.len(), wire).unwrap();
                device.sum_rows(place, count, stride, len, wire).unwrap();
                device.widen(place, sums.as_mut_ptr(), len, wire).unwrap();
            }
            let at = |row: usize, column: usize| wire.round(values[row * stride + column]);
            for (column, sum) in sums.iter().enumerate() {
                let pairs = [at(0, column) + at(1, column), at(2, column) + at(3, column)];
                let expected = wire.round((pairs[0] + pairs[1]) + at(4, column));
                assert_eq!(sum.to_bits(), expected.to_bits(), "{wire:?}, column {column}");
            }
            assert_eq!(device.mark().unwrap().has_come(), Ok(true));
        }
    }

    #[test]
    fn values_are_scaled_and_looked_through() {
        let mut device = TensorDevice::new(Device::Cpu).unwrap();
        let mut values = [1.5f32, -2.0, f32::MAX, 0.0];
        let place = values.as_mut_ptr();
        // SAFETY: the array lives on.
        unsafe {
            let count = place.add(3);
            device.scale(place, 2, 0.5).unwrap();
            device.count_not_finite(place, 4, count).unwrap();
            assert_eq!(device.read(count), Ok(0.0));
            device.scale(place.add(2), 1, 2.0).unwrap();
            device.count_not_finite(place, 2, count).unwrap();
            assert_eq!(device.read(count), Ok(0.0));
            device.count_not_finite(place, 4, count).unwrap();
            assert_eq!(device.read(count), Ok(1.0));
            *place.add(1) = f32::NAN;
            device.count_not_finite(place, 2, count).unwrap();
            assert_eq!(device.read(count), Ok(2.0));
        }
        assert_eq!(values[0], 0.75);
    }
}

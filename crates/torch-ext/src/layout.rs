//! channels_last: tensors of shape `[N, C, H, W]` that lie in memory as `[N, H, W, C]`.

use tch::Tensor;

use crate::error::Error;

/// Whether a four-dimensional tensor is dense in channels_last order. Strides of sides of length 1 mean
/// nothing and are not looked at, so a `[N, C, 1, 1]` tensor can be both contiguous and channels_last.
#[must_use]
pub fn is_channels_last(tensor: &Tensor) -> bool {
    let (size, stride) = (tensor.size(), tensor.stride());
    if size.len() != 4 {
        return false;
    }
    let mut expected = 1;
    for axis in [1, 3, 2, 0] {
        if size[axis] != 1 && stride[axis] != expected {
            return false;
        }
        expected *= size[axis];
    }
    true
}

/// The same values in channels_last order; no copy if they are already.
///
/// # Errors
/// When the tensor does not have four dimensions.
pub fn channels_last(tensor: &Tensor) -> Result<Tensor, Error> {
    if is_channels_last(tensor) {
        return Ok(tensor.shallow_clone());
    }
    if tensor.dim() != 4 {
        return Err(Error::Argument(format!("channels_last needs [N, C, H, W], not {:?}", tensor.size())));
    }
    Ok(tensor.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?)
}

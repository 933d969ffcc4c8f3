//! What the opaque pointers of NVML are here: small numbers, so that a handle is checked and never followed.

use std::os::raw::c_void;

/// A device handle: a GPU or one of its MIG devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) gpu: usize,
    pub(crate) mig: Option<usize>,
}

/// Above what a null pointer or a small error code would look like.
const DEVICE_BASE: usize = 0x0100_0000;
const INSTANCE_BASE: usize = 0x0200_0000;
/// MIG devices per GPU are at most 7; 64 leaves room and keeps the arithmetic plain.
const SLOTS: usize = 64;

impl Device {
    pub(crate) fn gpu(index: usize) -> Self {
        Self { gpu: index, mig: None }
    }

    pub(crate) fn to_ptr<T>(self) -> *mut T {
        std::ptr::without_provenance_mut::<c_void>(DEVICE_BASE + self.gpu * SLOTS + self.mig.map_or(0, |m| m + 1))
            .cast()
    }

    pub(crate) fn from_ptr<T>(ptr: *mut T) -> Option<Self> {
        let n = ptr.addr().checked_sub(DEVICE_BASE)?;
        if ptr.addr() >= INSTANCE_BASE {
            return None;
        }
        Some(Self {
            gpu: n / SLOTS,
            mig: (n % SLOTS).checked_sub(1),
        })
    }
}

/// A GPU instance or a compute instance: both name the MIG device they belong to.
pub(crate) fn instance_to_ptr<T>(device: Device) -> *mut T {
    let device: *mut T = device.to_ptr();
    std::ptr::without_provenance_mut(device.addr() - DEVICE_BASE + INSTANCE_BASE)
}

pub(crate) fn instance_from_ptr<T>(ptr: *mut T) -> Option<Device> {
    let n = ptr.addr().checked_sub(INSTANCE_BASE)?;
    Device::from_ptr::<T>(std::ptr::without_provenance_mut(DEVICE_BASE + n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_come_back_as_what_they_were() {
        for device in [
            Device::gpu(0),
            Device::gpu(15),
            Device { gpu: 0, mig: Some(0) },
            Device { gpu: 7, mig: Some(6) },
        ] {
            assert_eq!(Device::from_ptr::<u8>(device.to_ptr()), Some(device));
            assert_eq!(instance_from_ptr::<u8>(instance_to_ptr(device)), Some(device));
            assert_eq!(Device::from_ptr::<u8>(instance_to_ptr(device)), None);
        }
        assert_eq!(Device::from_ptr::<u8>(std::ptr::null_mut()), None);
    }
}

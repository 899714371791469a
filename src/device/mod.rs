//! How to run one kernel. Nothing here knows what a document is.
//!
//! A [`Device`] is a memory, a list of kernels and one queue: uploads, launches and downloads happen in the order in
//! which they were asked for, and only [`Device::read`] waits.

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use std::time::{Duration, Instant};

use crate::kernel::Variant;

/// What went wrong on a device. Nothing on the host is lost with it.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no such device, or no driver for it.
    #[error("no such device: {0}")]
    NotFound(String),
    /// It is there, and cannot run the kernels.
    #[error("the device cannot run the kernels: {0}")]
    Unsuitable(String),
    /// It does not have the memory.
    #[error("out of device memory: {0}")]
    OutOfMemory(String),
    /// It was removed, reset, or its driver gave up.
    #[error("the device was lost: {0}")]
    Lost(String),
    /// It refused a command.
    #[error("the device refused a command: {0}")]
    Refused(String),
}

/// What a device can take; sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest buffer that a kernel can be given.
    pub max_buffer_bytes: u64,
    /// Most workgroups of a launch.
    pub max_workgroups: u64,
    /// Memory that the threads of a workgroup share.
    pub workgroup_bytes: u32,
    /// Most threads of a workgroup.
    pub max_threads: u32,
    /// Smallest and largest subgroup, where subgroup operations can be used.
    pub subgroup_sizes: Option<(u32, u32)>,
    /// Whether kernels can read f16.
    pub has_f16: bool,
    /// Side of the cooperative matrices, f16 summed in f32, that kernels can use, if any.
    pub cooperative: Option<u32>,
    /// Whether products of 16-bit tokens are summed with truncation in place of rounding, as tensor cores do.
    pub truncates: bool,
    /// Whether it is a CPU that plays a device.
    pub is_software: bool,
    /// Least number of query tokens that meet a document from which `maxsim` is to be the wide one, if there is one.
    pub wide_query_tokens: Option<u32>,
}

/// A memory, kernels and one queue.
pub trait Device: Send + Sync + 'static {
    /// Memory on the device.
    type Buffer: Send + Sync;
    /// Bytes on their way to the host.
    type Download: Send;

    /// For reports: API, adapter, driver.
    fn name(&self) -> String;

    /// What it can take.
    fn limits(&self) -> &Limits;

    /// Memory for `size_bytes`, a multiple of 16 above 0. Its contents are undefined until written.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], [`DeviceError::Lost`].
    fn alloc(&self, size_bytes: u64) -> Result<Self::Buffer, DeviceError>;

    /// Writes `bytes`, a multiple of 4, to the start of a buffer; they may be reused on return.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn upload(&self, to: &Self::Buffer, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Runs a kernel over `num_workgroups`, at least one, with the buffers of its arguments and its parameter block.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn launch(
        &self,
        variant: Variant,
        arguments: &[&Self::Buffer],
        params: &[u8],
        num_workgroups: u64,
    ) -> Result<(), DeviceError>;

    /// How many workgroups of a kernel run at once, where a launch is best given no more: they then have many items
    /// each. None where every item is best a workgroup of its own.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn resident_workgroups(&self, _variant: Variant) -> Result<Option<u32>, DeviceError> {
        Ok(None)
    }

    /// Begins to bring the first `size_bytes` of each buffer to the host, once everything before it has run. With no
    /// buffers there is only that to wait for.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn download(&self, from: &[(&Self::Buffer, u64)]) -> Result<Self::Download, DeviceError>;

    /// Whether [`Device::read`] would return at once.
    fn is_ready(&self, download: &Self::Download) -> bool;

    /// How long the device works on what `work` asks of it, by the device's clock where it has one.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn time(&self, work: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Duration, DeviceError> {
        let fence = self.alloc(16)?;
        let wait = || self.read(self.download(&[(&fence, 16)])?, &mut |_| ());
        self.upload(&fence, &[0; 16])?;
        wait()?;
        let started = Instant::now();
        work()?;
        wait()?;
        Ok(started.elapsed())
    }

    /// Waits for a download and hands over its parts, in the order of the buffers.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn read(&self, download: Self::Download, each: &mut dyn FnMut(&[&[u8]])) -> Result<(), DeviceError>;
}

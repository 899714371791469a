//! A device that waits for each command and notes how long it took: where the time of a batch goes when nothing overlaps.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::device::{Device, DeviceError, Limits};
use crate::kernel::{Kernel, Variant};

/// Seconds of each kind of command.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spent {
    pub(super) upload: f64,
    pub(super) gram: f64,
    pub(super) selection: f64,
    pub(super) download: f64,
    /// What is done on the host with what arrives.
    pub(super) decode: f64,
}

/// See the [module](self).
pub(super) struct Timed<D> {
    inner: Arc<D>,
    spent: Mutex<Spent>,
}

impl<D: Device> Timed<D> {
    pub(super) fn new(inner: Arc<D>) -> Self {
        Timed { inner, spent: Mutex::default() }
    }

    /// Gives what was noted since the last time.
    pub(super) fn take(&self) -> Spent {
        std::mem::take(&mut *self.spent.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, add: impl FnOnce(&mut Spent)) {
        add(&mut self.spent.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn settle(&self) -> Result<(), DeviceError> {
        self.inner.read(self.inner.download(&[])?, &mut |_| ())
    }
}

impl<D: Device> Device for Timed<D> {
    type Buffer = D::Buffer;
    type Download = D::Download;

    fn name(&self) -> String {
        self.inner.name()
    }

    fn limits(&self) -> &Limits {
        self.inner.limits()
    }

    fn alloc(&self, size_bytes: u64) -> Result<D::Buffer, DeviceError> {
        self.inner.alloc(size_bytes)
    }

    fn upload(&self, to: &D::Buffer, bytes: &[u8]) -> Result<(), DeviceError> {
        let started = Instant::now();
        self.inner.upload(to, bytes)?;
        self.settle()?;
        self.note(|spent| spent.upload += started.elapsed().as_secs_f64());
        Ok(())
    }

    fn launch(
        &self,
        variant: Variant,
        arguments: &[&D::Buffer],
        params: &[u8],
        num_workgroups: u64,
    ) -> Result<(), DeviceError> {
        let mut launch = || self.inner.launch(variant, arguments, params, num_workgroups);
        let seconds = self.inner.time(&mut launch)?.as_secs_f64();
        self.note(|spent| match variant.kernel {
            Kernel::Centre | Kernel::Gram => spent.gram += seconds,
            _ => spent.selection += seconds,
        });
        Ok(())
    }

    fn download(&self, from: &[(&D::Buffer, u64)]) -> Result<D::Download, DeviceError> {
        let started = Instant::now();
        let download = self.inner.download(from)?;
        self.note(|spent| spent.download += started.elapsed().as_secs_f64());
        Ok(download)
    }

    fn is_ready(&self, download: &D::Download) -> bool {
        self.inner.is_ready(download)
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Duration, DeviceError> {
        self.inner.time(work)
    }

    fn read(&self, download: D::Download, each: &mut dyn FnMut(&[&[u8]])) -> Result<(), DeviceError> {
        let started = Instant::now();
        let mut decode = Duration::ZERO;
        self.inner.read(download, &mut |parts| {
            let started = Instant::now();
            each(parts);
            decode += started.elapsed();
        })?;
        let whole = started.elapsed();
        self.note(|spent| {
            spent.decode += decode.as_secs_f64();
            spent.download += whole.saturating_sub(decode).as_secs_f64();
        });
        Ok(())
    }
}

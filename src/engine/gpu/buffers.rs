//! Memory of one batch on the device, and the launches that fill it.

use super::batch::{Ask, Packed};
use crate::TokenBatch;
use crate::device::{Device, DeviceError};
use crate::kernel::{Entry, FACE_CAP, GramParams, Kernel, SelectionParams, Variant};

/// Bytes of a token's face.
const FACE_BYTES: u64 = FACE_CAP as u64 * size_of::<Entry>() as u64;

/// A buffer that only grows.
pub(super) struct GrowBuffer<D: Device>(Option<(D::Buffer, u64)>);

impl<D: Device> Default for GrowBuffer<D> {
    fn default() -> Self {
        GrowBuffer(None)
    }
}

impl<D: Device> GrowBuffer<D> {
    /// At least `size_bytes`; what it held is lost when it grows.
    pub(super) fn at_least(&mut self, device: &D, size_bytes: u64) -> Result<&D::Buffer, DeviceError> {
        if self.0.as_ref().is_none_or(|&(_, has)| has < size_bytes) {
            // Old memory first, so that the new can take its place.
            self.0 = None;
            // A little more, so that batches of about the same size do not grow it again and again.
            let most = device.limits().max_buffer_bytes;
            let roomy = (size_bytes + size_bytes / 8).next_multiple_of(256).min(most).max(size_bytes);
            self.0 = Some((device.alloc(roomy.next_multiple_of(16))?, roomy));
        }
        self.filled()
    }

    /// As [`GrowBuffer::at_least`], with these contents.
    pub(super) fn holding<T: bytemuck::Pod>(&mut self, device: &D, values: &[T]) -> Result<(), DeviceError> {
        let bytes = bytemuck::cast_slice(values);
        let buffer = self.at_least(device, (bytes.len() as u64).max(16))?;
        if bytes.is_empty() { Ok(()) } else { device.upload(buffer, bytes) }
    }

    /// What it holds.
    pub(super) fn filled(&self) -> Result<&D::Buffer, DeviceError> {
        let buffer = self.0.as_ref().map(|(buffer, _)| buffer);
        buffer.ok_or_else(|| DeviceError::Refused("a kernel was given a buffer that holds nothing".into()))
    }
}

/// Buffers of one batch, named as the arguments of the kernels.
pub(super) struct BatchBuffers<D: Device> {
    tokens: GrowBuffer<D>,
    docs: GrowBuffer<D>,
    tiles: GrowBuffer<D>,
    centres: GrowBuffer<D>,
    gram: GrowBuffer<D>,
    items: GrowBuffer<D>,
    chunks: GrowBuffer<D>,
    faces: GrowBuffer<D>,
    states: GrowBuffer<D>,
    order: GrowBuffer<D>,
    curve: GrowBuffer<D>,
    results: GrowBuffer<D>,
    entries: GrowBuffer<D>,
    cursor: GrowBuffer<D>,
}

impl<D: Device> Default for BatchBuffers<D> {
    fn default() -> Self {
        BatchBuffers {
            tokens: GrowBuffer::default(),
            docs: GrowBuffer::default(),
            tiles: GrowBuffer::default(),
            centres: GrowBuffer::default(),
            gram: GrowBuffer::default(),
            items: GrowBuffer::default(),
            chunks: GrowBuffer::default(),
            faces: GrowBuffer::default(),
            states: GrowBuffer::default(),
            order: GrowBuffer::default(),
            curve: GrowBuffer::default(),
            results: GrowBuffer::default(),
            entries: GrowBuffer::default(),
            cursor: GrowBuffer::default(),
        }
    }
}

impl<D: Device> BatchBuffers<D> {
    /// Uploads a batch, launches its kernels and begins the download of the answers.
    pub(super) fn send<A: Ask>(
        &mut self,
        device: &D,
        batch: &TokenBatch<'_>,
        packed: &Packed,
        ask: &A,
    ) -> Result<D::Download, DeviceError> {
        if packed.num_device_docs() == 0 {
            return device.download(&[]);
        }
        self.multiply(device, batch, packed)?;
        let num_tokens = u64::from(packed.num_tokens);
        self.faces.at_least(device, num_tokens * FACE_BYTES)?;
        self.states.at_least(device, num_tokens * 16)?;
        match ask.kernel() {
            Kernel::Dominance => self.items.holding(device, &packed.items)?,
            _ => {
                self.order.holding(device, &packed.order)?;
                self.curve.at_least(device, num_tokens * 4)?;
                self.results.at_least(device, packed.docs().len() as u64 * 16)?;
                self.chunks.holding(device, &packed.chunks)?;
                self.entries.at_least(device, packed.most_entries() * size_of::<Entry>() as u64)?;
                self.cursor.holding(device, &[0u32; 4])?;
            }
        }
        self.ask(device, packed, ask, false)
    }

    /// Launches the kernels that answer, or has them go on where they left off, and begins the download.
    pub(super) fn ask<A: Ask>(
        &self,
        device: &D,
        packed: &Packed,
        ask: &A,
        is_resumed: bool,
    ) -> Result<D::Download, DeviceError> {
        let BatchBuffers { gram, docs, items, chunks, faces, states, order, curve, results, entries, cursor, .. } =
            self;
        let params = ask.params(packed);
        let run = |kernel, arguments: &[&GrowBuffer<D>], num_items: usize, is_resumed: bool| {
            let is_resumed = u32::from(is_resumed);
            let params = SelectionParams { num_items: num_items as u32, is_resumed, ..params };
            launch(device, packed.variant(kernel), arguments, bytemuck::bytes_of(&params), num_items)
        };
        if ask.kernel() == Kernel::Dominance {
            run(Kernel::Dominance, &[gram, docs, items, faces, states], packed.items.len(), false)?;
            let num_tokens = u64::from(packed.num_tokens);
            return download(device, &[(states, num_tokens * 16), (faces, num_tokens * FACE_BYTES)]);
        }
        let arguments = [gram, docs, faces, states, order, curve, results];
        for launch_idx in 0..packed.num_launches {
            run(Kernel::Selection, &arguments, packed.num_device_docs(), is_resumed || launch_idx > 0)?;
        }
        if !packed.chunks.is_empty() {
            let arguments = [gram, chunks, faces, states, order, results, entries, cursor];
            run(Kernel::Compact, &arguments, packed.chunks.len(), is_resumed)?;
        }
        self.fetch(device, packed, packed.expected_entries())
    }

    /// Begins the download of what `selection` and `compact` have to say, with the first `num_entries` entries.
    pub(super) fn fetch(&self, device: &D, packed: &Packed, num_entries: u64) -> Result<D::Download, DeviceError> {
        let BatchBuffers { order, curve, results, entries, cursor, .. } = self;
        let num_tokens = u64::from(packed.num_tokens);
        let parts = [
            (order, num_tokens * 4),
            (curve, num_tokens * 4),
            (results, packed.docs().len() as u64 * 16),
            (cursor, 4),
            (entries, num_entries * size_of::<Entry>() as u64),
        ];
        download(device, &parts)
    }

    /// Uploads the tokens and fills `gram`.
    fn multiply(&mut self, device: &D, batch: &TokenBatch<'_>, packed: &Packed) -> Result<(), DeviceError> {
        let rows = packed.rows(batch);
        self.tokens.holding(device, &rows)?;
        self.docs.holding(device, packed.device_docs())?;
        self.tiles.holding(device, &packed.tiles)?;
        let num_docs = packed.docs().len() as u64;
        let centre_bytes = if packed.is_centred { num_docs * packed.centre_bytes() } else { 16 };
        self.centres.at_least(device, centre_bytes)?;
        self.gram.at_least(device, packed.gram_len * 4)?;
        let params = |num_items: usize| GramParams {
            num_items: num_items as u32,
            num_chunks: packed.num_chunks,
            is_centred: u32::from(packed.is_centred),
            padding: 0,
        };
        let BatchBuffers { tokens, docs, tiles, centres, gram, .. } = &*self;
        if packed.is_centred {
            let num_docs = packed.num_device_docs();
            let variant = packed.variant(Kernel::Centre);
            launch(device, variant, &[tokens, docs, centres], bytemuck::bytes_of(&params(num_docs)), num_docs)?;
        }
        let num_tiles = packed.tiles.len();
        let variant = packed.variant(Kernel::Gram);
        let arguments = [tokens, docs, tiles, centres, gram];
        launch(device, variant, &arguments, bytemuck::bytes_of(&params(num_tiles)), num_tiles)
    }
}

fn launch<D: Device>(
    device: &D,
    variant: Variant,
    arguments: &[&GrowBuffer<D>],
    params: &[u8],
    num_workgroups: usize,
) -> Result<(), DeviceError> {
    let buffers: Result<Vec<&D::Buffer>, DeviceError> = arguments.iter().map(|buffer| buffer.filled()).collect();
    device.launch(variant, &buffers?, params, num_workgroups as u64)
}

/// Sends what was recorded on its way and waits for it: only then does the memory of dropped buffers come back.
pub(super) fn settle<D: Device>(device: &D) {
    // Where this fails as well, the next command says so.
    let _ = device.download(&[]).and_then(|download| device.read(download, &mut |_| ()));
}

/// Begins to bring the first bytes of buffers to the host.
fn download<D: Device>(device: &D, parts: &[(&GrowBuffer<D>, u64)]) -> Result<D::Download, DeviceError> {
    let parts: Result<Vec<(&D::Buffer, u64)>, DeviceError> =
        parts.iter().map(|&(buffer, size)| Ok((buffer.filled()?, size))).collect();
    device.download(&parts?)
}

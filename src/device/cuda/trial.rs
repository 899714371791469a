//! A trial of the wide `maxsim` for one architecture alone, on the device, before its first use: Hopper's asynchronous
//! products are more easily asked for wrongly than other instructions, and the kernel for all architectures is there.
//!
//! Small integers, of which every order of summation gives the same bits; query tokens, document tokens and components
//! that end within a tile and at its end.

use bytemuck::Pod;

use super::driver::{Context, Event, Function, HostMemory, Memory, Stream};
use crate::device::DeviceError;
use crate::kernel::{Encoding, MAXSIM_WIDE_CHUNKS, MaxsimItem, MaxsimParams};

/// Query tokens and tokens of each item; all of one share.
const ITEMS: [(u32, u32); 3] = [(256, 200), (256, 64), (70, 65)];

/// Whether the kernel gives the right maxima and matches.
pub fn is_right(context: &Context, function: &Function, encoding: Encoding) -> Result<bool, DeviceError> {
    for (num_chunks, has_matches) in [(MAXSIM_WIDE_CHUNKS, 0), (9, 1), (5, 0)] {
        let trial = Trial::new(encoding, num_chunks as usize);
        let num_query_tokens = trial.maxima.len();
        let params = MaxsimParams { num_items: 1, num_chunks, has_matches, ..MaxsimParams::default() };
        let nothing = [0u32; 4];
        let (maxima, matches) =
            (Memory::new(context, bytes(num_query_tokens))?, Memory::new(context, bytes(num_query_tokens))?);
        let filled = |values: &[u8]| filled(context, values);
        let buffers = [
            filled(bytemuck::cast_slice(&trial.queries))?,
            filled(&trial.tokens)?,
            filled(bytemuck::bytes_of(&nothing))?,
            filled(bytemuck::cast_slice(&trial.items))?,
            filled(bytemuck::cast_slice(&[0, ITEMS.len() as u32]))?,
        ];
        // After all memory: when this returns early, it ends first what it runs.
        let stream = Stream::new(context)?;
        buffers.iter().try_for_each(|(to, from)| stream.upload(to, 0, from, from.len()))?;
        let [(queries, _), (tokens, _), (scales, _), (items, _), (shares, _)] = &buffers;
        let memories = [queries, tokens, scales, scales, items, shares, &maxima, &matches];
        stream.launch(function, &memories, bytemuck::bytes_of(&params), 1)?;
        let found: Vec<f32> = fetched(context, &stream, &maxima, num_query_tokens)?;
        if found != trial.maxima {
            return Ok(false);
        }
        if has_matches != 0 && fetched::<u32>(context, &stream, &matches, num_query_tokens)? != trial.matches {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What goes in and what has to come out.
struct Trial {
    queries: Vec<f32>,
    tokens: Vec<u8>,
    items: Vec<MaxsimItem>,
    maxima: Vec<f32>,
    matches: Vec<u32>,
}

impl Trial {
    fn new(encoding: Encoding, num_chunks: usize) -> Self {
        let row_len = num_chunks * encoding.chunk_dim();
        let mut trial = Trial {
            queries: Vec::new(),
            tokens: Vec::new(),
            items: Vec::new(),
            maxima: Vec::new(),
            matches: Vec::new(),
        };
        // SplitMix64.
        let mut state = 0u64;
        let mut component = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            ((mixed ^ (mixed >> 27)) >> 40) % 7
        };
        let mut rows =
            |num_rows: u32| -> Vec<i32> { (0..num_rows as usize * row_len).map(|_| component() as i32 - 3).collect() };
        let mut first_token = 0;
        let mut queries = Vec::new();
        for (num_query_tokens, num_tokens) in ITEMS {
            // The second item has the query tokens of the first.
            if trial.items.len() != 1 {
                queries = rows(num_query_tokens);
                trial.queries.extend(queries.iter().map(|&value| value as f32));
            }
            let tokens = rows(num_tokens);
            trial.items.push(MaxsimItem {
                first_query_token: (trial.queries.len() / row_len) as u32 - num_query_tokens,
                num_query_tokens,
                first_token,
                num_tokens,
                first_maximum: trial.maxima.len() as u32,
                ..MaxsimItem::default()
            });
            first_token += num_tokens;
            for query in queries.chunks(row_len) {
                let dots = tokens.chunks(row_len).map(|token| query.iter().zip(token).map(|(a, b)| a * b).sum::<i32>());
                let first_of_largest = |best: (i32, u32), next: (i32, u32)| if next.0 > best.0 { next } else { best };
                let best = dots.zip(0..).fold((i32::MIN, 0), first_of_largest);
                trial.maxima.push(best.0 as f32);
                trial.matches.push(best.1);
            }
            trial.tokens.extend(tokens.iter().flat_map(|&value| stored(encoding, value)));
        }
        trial
    }
}

/// A component as documents have it.
fn stored(encoding: Encoding, value: i32) -> impl Iterator<Item = u8> {
    let (bytes, len) = match encoding {
        Encoding::I8 => ([value as u8, 0], 1),
        Encoding::Bf16 => (half::bf16::from_f32(value as f32).to_le_bytes(), 2),
        _ => (half::f16::from_f32(value as f32).to_le_bytes(), 2),
    };
    bytes.into_iter().take(len)
}

fn bytes(num_values: usize) -> u64 {
    (4 * num_values as u64).next_multiple_of(16)
}

/// Room for these values, and the host's memory that they are uploaded from.
fn filled(context: &Context, values: &[u8]) -> Result<(Memory, HostMemory), DeviceError> {
    let len = values.len().next_multiple_of(16);
    let (memory, mut host) = (Memory::new(context, len as u64)?, HostMemory::new(context, len)?);
    host.bytes_mut()[..values.len()].copy_from_slice(values);
    Ok((memory, host))
}

/// Waits for the first values of some memory.
fn fetched<T: Pod>(context: &Context, stream: &Stream, from: &Memory, len: usize) -> Result<Vec<T>, DeviceError> {
    let size = len * size_of::<T>();
    let host = HostMemory::new(context, size)?;
    stream.download(from, &host, 0, size)?;
    let event = Event::new(context)?;
    event.record(stream)?;
    event.wait()?;
    Ok(bytemuck::pod_collect_to_vec(&host.bytes()[..size]))
}

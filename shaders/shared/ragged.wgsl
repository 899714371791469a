// Ragged batches and parameter blocks, as src/kernel.rs has them: the only place where offsets are decoded.

struct Doc {
    first_token: u32,
    num_tokens: u32,
    gram_start: u32,
    num_first: u32,
    max_kept: u32,
    doc_idx: u32,
    first_removed: u32,
    padding: u32,
}

struct GramParams {
    num_items: u32,
    num_chunks: u32,
    is_centred: u32,
    padding: u32,
}

struct MaxsimParams {
    num_items: u32,
    num_chunks: u32,
    scoring: u32,
    has_matches: u32,
    has_query_scales: u32,
    has_token_scales: u32,
    is_summed: u32,
    padding: u32,
}

struct CeilingParams {
    num_items: u32,
    num_steps: u32,
    factor: f32,
    summand: f32,
}

/// Entries from one row of a document's Gram matrix to the next.
fn gram_stride(num_tokens: u32) -> u32 {
    return (num_tokens + 3u) & ~3u;
}

/// Grids are linear; the device folds them into two dimensions.
fn linear_idx(workgroup_id: vec3<u32>, num_workgroups: vec3<u32>) -> u32 {
    return workgroup_id.y * num_workgroups.x + workgroup_id.x;
}

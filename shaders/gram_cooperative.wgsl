// `gram` for f16 tokens, without centres, in cooperative matrices: f16 times f16, summed in f32.
//
// NOTE: no device of the test suite has them, so this variant is only translated there, never run. It is used where a
// device was opened for it, and not otherwise.
//
// A workgroup a tile, as in `gram`; a subgroup a panel of 16 rows. The size of a cooperative matrix (COOPERATIVE_SIDE, 8
// or 16) and its types (Left, Right, Sums) come with the source. The number of subgroups is the device's choice:
// 1. With fewer subgroups than panels the tile takes several rounds.
// 2. With more, all that are left over compute a spare panel that nobody reads: matrix operations want every subgroup in
//    the same control flow.
// Matrices are stored whole and documents are ragged, so the sums go through workgroup memory, 16 columns at a time, and
// only entries of the document are written. Below the diagonal everything is written from above it, in the diagonal tiles
// too: nothing says that a device sums (i, j) and (j, i) in the same order.

/// Packed tokens, `num_chunks` each.
@group(0) @binding(0) var<storage, read> tokens: array<Chunk>;
@group(0) @binding(1) var<storage, read> docs: array<Doc>;
/// Document, row tile, column tile; one a workgroup.
@group(0) @binding(2) var<storage, read> tiles: array<vec4<u32>>;
/// Not read.
@group(0) @binding(3) var<storage, read> centres: array<vec4<f32>>;
/// Rows of `gram_stride(num_tokens)` entries; those past `num_tokens` are undefined.
@group(0) @binding(4) var<storage, read_write> matrix: array<f32>;
@group(0) @binding(5) var<uniform> params: GramParams;

const THREADS: u32 = 128u;
/// Rows that a subgroup computes at a time, and columns that are written at a time.
const PANEL: u32 = 16u;
const NUM_PANELS: u32 = TILE / PANEL;
const ROW_BLOCKS: u32 = PANEL / COOPERATIVE_SIDE;
const COLUMN_BLOCKS: u32 = TILE / COOPERATIVE_SIDE;
/// Components staged at a time, in whole chunks.
const STEP: u32 = 16u;
const STEP_CHUNKS: u32 = STEP / 8u;
/// From one staged token to the next, and from one row of sums to the next: whole 16 bytes, in different banks.
const PITCH: u32 = STEP + 8u;
const SUMS_PITCH: u32 = PANEL + 4u;

/// The tile's rows, then its columns.
var<workgroup> staged: array<f16, 2u * TILE * PITCH>;
/// A panel's width of sums of every panel, and the spare one.
var<workgroup> slab: array<f32, (TILE + PANEL) * SUMS_PITCH>;

/// Stages chunk `c` of token `i` at `at`; zeros past the document and past the token.
fn stage(doc: Doc, i: u32, c: u32, at: u32) {
    let row = doc.first_token + min(i, doc.num_tokens - 1u);
    let chunk = tokens[row * params.num_chunks + min(c, params.num_chunks - 1u)];
    let is_inside = i < doc.num_tokens && c < params.num_chunks;
    let low = select(vec4<f16>(), chunk.low, is_inside);
    let high = select(vec4<f16>(), chunk.high, is_inside);
    staged[at] = low.x;
    staged[at + 1u] = low.y;
    staged[at + 2u] = low.z;
    staged[at + 3u] = low.w;
    staged[at + 4u] = high.x;
    staged[at + 5u] = high.y;
    staged[at + 6u] = high.z;
    staged[at + 7u] = high.w;
}

@compute @workgroup_size(THREADS)
fn gram(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup_id: u32,
    @builtin(num_subgroups) num_subgroups: u32,
) {
    // NOTE: this is `linear_idx`; naga takes no function's value for uniform, and matrix operations need that.
    let item = workgroup_id.y * num_workgroups.x + workgroup_id.x;
    if item >= params.num_items {
        return;
    }
    let tile = tiles[item];
    let doc = docs[tile.x];
    let n = doc.num_tokens;
    let first_row = tile.y * TILE;
    let first_column = tile.z * TILE;
    let is_diagonal = first_row == first_column;
    let columns_at = select(TILE * PITCH, 0u, is_diagonal);
    let num_staged = select(2u * TILE, TILE, is_diagonal) * STEP_CHUNKS;

    for (var first_panel = 0u; first_panel < NUM_PANELS; first_panel += num_subgroups) {
        let panel = min(first_panel + subgroup_id, NUM_PANELS);
        for (var at = thread; at < PANEL * SUMS_PITCH; at += THREADS) {
            slab[at] = 0.0;
        }
        workgroupBarrier();
        var sums: array<Sums, ROW_BLOCKS * COLUMN_BLOCKS>;
        for (var block = 0u; block < ROW_BLOCKS * COLUMN_BLOCKS; block++) {
            sums[block] = coopLoadT<Sums>(&slab[0], SUMS_PITCH);
        }

        for (var first_chunk = 0u; first_chunk < params.num_chunks; first_chunk += STEP_CHUNKS) {
            for (var task = thread; task < num_staged; task += THREADS) {
                let row = task / STEP_CHUNKS;
                let c = task % STEP_CHUNKS;
                let i = select(first_column + row - TILE, first_row + row, row < TILE);
                stage(doc, i, first_chunk + c, row * PITCH + c * 8u);
            }
            workgroupBarrier();
            for (var k = 0u; k < STEP; k += COOPERATIVE_SIDE) {
                for (var r = 0u; r < ROW_BLOCKS; r++) {
                    let x = coopLoadT<Left>(&staged[(panel * PANEL + r * COOPERATIVE_SIDE) * PITCH + k], PITCH);
                    for (var b = 0u; b < COLUMN_BLOCKS; b++) {
                        // Column-major: a token is a column of the right matrix.
                        let y = coopLoad<Right>(&staged[columns_at + b * COOPERATIVE_SIDE * PITCH + k], PITCH);
                        let block = r * COLUMN_BLOCKS + b;
                        sums[block] = coopMultiplyAdd(x, y, sums[block]);
                    }
                }
            }
            workgroupBarrier();
        }

        for (var slab_column = 0u; slab_column < TILE; slab_column += PANEL) {
            for (var r = 0u; r < ROW_BLOCKS; r++) {
                for (var b = 0u; b < ROW_BLOCKS; b++) {
                    let block = r * COLUMN_BLOCKS + slab_column / COOPERATIVE_SIDE + b;
                    let row = panel * PANEL + r * COOPERATIVE_SIDE;
                    coopStoreT(sums[block], &slab[row * SUMS_PITCH + b * COOPERATIVE_SIDE], SUMS_PITCH);
                }
            }
            workgroupBarrier();
            let start = first_panel * PANEL;
            let end = min(start + num_subgroups * PANEL, TILE);
            // Neighbours write neighbours: along rows here, along columns below the diagonal.
            for (var at = start * PANEL + thread; at < end * PANEL; at += THREADS) {
                let i = first_row + at / PANEL;
                let j = first_column + slab_column + at % PANEL;
                if i <= j && j < n {
                    matrix[doc.gram_start + i * gram_stride(n) + j] = slab[at / PANEL * SUMS_PITCH + at % PANEL];
                }
            }
            for (var at = thread; at < (end - start) * PANEL; at += THREADS) {
                let row = start + at % (end - start);
                let column = at / (end - start);
                let i = first_row + row;
                let j = first_column + slab_column + column;
                if i < j && j < n {
                    matrix[doc.gram_start + j * gram_stride(n) + i] = slab[row * SUMS_PITCH + column];
                }
            }
            workgroupBarrier();
        }
    }
}

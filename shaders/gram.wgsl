// Pairwise dot products within each document: G = X X^T, or (X - c)(X - c)^T with its centre c.
// A workgroup a tile of TILE x TILE entries on or above the diagonal, which it also writes below; a thread 8 x 8 entries.
//
// The definition is G[i][j] = sum_k x[i][k] * x[j][k], with k ascending, one chain of multiply-adds an entry: the matrix
// is symmetric to the bit. For speed:
// 1. STEP components of the tile's rows and columns are staged in workgroup memory as f32, so that a token is read from
//    memory once a tile, whatever its encoding. A diagonal tile stages its rows only.
// 2. They are staged by component: a vec4 there holds one component of 4 tokens. A thread reads 4 of them and feeds 64
//    multiply-adds; its 8 rows and columns are two groups of 4, half a tile apart, so that neighbours read neighbours.
// 3. The threads that stage neighbouring chunks of a token are neighbours; padding between chunks keeps their writes in
//    different banks.

/// Packed tokens, `num_chunks` each.
@group(0) @binding(0) var<storage, read> tokens: array<Chunk>;
@group(0) @binding(1) var<storage, read> docs: array<Doc>;
/// Document, row tile, column tile; one a workgroup.
@group(0) @binding(2) var<storage, read> tiles: array<vec4<u32>>;
/// One row a document, as long as an unpacked token; read if `is_centred`.
@group(0) @binding(3) var<storage, read> centres: array<vec4<f32>>;
/// Rows of `gram_stride(num_tokens)` entries, a multiple of 4; those past `num_tokens` are undefined.
@group(0) @binding(4) var<storage, read_write> matrix: array<vec4<f32>>;
@group(0) @binding(5) var<uniform> params: GramParams;

/// Components staged at a time.
const STEP: u32 = 16u;
const CHUNK_DIM: u32 = 4u * CHUNK_VECS;
const STEP_CHUNKS: u32 = STEP / CHUNK_DIM;
/// Groups of 4 tokens in a tile's rows.
const GROUPS: u32 = TILE / 4u;
/// Threads along a side of the tile; each has a group of 4 in either half.
const SIDE: u32 = TILE / 8u;
const THREADS: u32 = SIDE * SIDE;
/// Staged values of a chunk: a row of groups a component, then padding.
const PLANE: u32 = CHUNK_DIM * GROUPS + 8u / STEP_CHUNKS;
/// Staged values of a tile's rows.
const STAGED: u32 = STEP_CHUNKS * PLANE;

/// The tile's rows, then its columns.
var<workgroup> staged: array<vec4<f32>, 2u * STAGED>;

/// Chunk `c` of token `i` without the centre; zeros past the document and past the token.
fn load(doc: Doc, i: u32, c: u32, centre: ChunkF32) -> ChunkF32 {
    // Clamped, not skipped: without branches the loads of a thread overlap.
    let row = doc.first_token + min(i, doc.num_tokens - 1u);
    var values = unpack_chunk(tokens[row * params.num_chunks + min(c, params.num_chunks - 1u)]);
    let is_inside = i < doc.num_tokens && c < params.num_chunks;
    var offset = centre;
    for (var v = 0u; v < CHUNK_VECS; v++) {
        values[v] = select(vec4<f32>(), values[v] - offset[v], is_inside);
    }
    return values;
}

/// Stages chunk `first_chunk + plane` of 4 tokens from `i` on as group `group` of the rows or columns at `base`.
fn stage(doc: Doc, i: u32, group: u32, first_chunk: u32, plane: u32, base: u32) {
    let c = first_chunk + plane;
    var centre: ChunkF32;
    if params.is_centred != 0u {
        for (var v = 0u; v < CHUNK_VECS; v++) {
            centre[v] = centres[(doc.doc_idx * params.num_chunks + min(c, params.num_chunks - 1u)) * CHUNK_VECS + v];
        }
    }
    var x0 = load(doc, i, c, centre);
    var x1 = load(doc, i + 1u, c, centre);
    var x2 = load(doc, i + 2u, c, centre);
    var x3 = load(doc, i + 3u, c, centre);
    for (var v = 0u; v < CHUNK_VECS; v++) {
        let by_component = transpose(mat4x4<f32>(x0[v], x1[v], x2[v], x3[v]));
        let at = base + plane * PLANE + 4u * v * GROUPS + group;
        staged[at] = by_component[0];
        staged[at + GROUPS] = by_component[1];
        staged[at + 2u * GROUPS] = by_component[2];
        staged[at + 3u * GROUPS] = by_component[3];
    }
}

/// `sum + x y^T`, a row a vec4.
fn add_outer(sum: mat4x4<f32>, x: vec4<f32>, y: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        fma(vec4<f32>(x.x), y, sum[0]),
        fma(vec4<f32>(x.y), y, sum[1]),
        fma(vec4<f32>(x.z), y, sum[2]),
        fma(vec4<f32>(x.w), y, sum[3]),
    );
}

/// Writes 4 x 4 entries from row `i` and column `j`, both multiples of 4, on; a last vec4 may reach into the padding.
fn store(doc: Doc, i: u32, j: u32, entries: mat4x4<f32>) {
    let stride = gram_stride(doc.num_tokens) / 4u;
    if j < doc.num_tokens {
        let at = doc.gram_start / 4u + i * stride + j / 4u;
        if i < doc.num_tokens {
            matrix[at] = entries[0];
        }
        if i + 1u < doc.num_tokens {
            matrix[at + stride] = entries[1];
        }
        if i + 2u < doc.num_tokens {
            matrix[at + 2u * stride] = entries[2];
        }
        if i + 3u < doc.num_tokens {
            matrix[at + 3u * stride] = entries[3];
        }
    }
}

@compute @workgroup_size(THREADS)
fn gram(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = linear_idx(workgroup_id, num_workgroups);
    if item >= params.num_items {
        return;
    }
    let tile = tiles[item];
    let doc = docs[tile.x];
    let first_row = tile.y * TILE;
    let first_column = tile.z * TILE;
    let is_diagonal = first_row == first_column;

    // The sums, 4 x 4 a piece: which half of the rows, which half of the columns.
    var sum00: mat4x4<f32>;
    var sum01: mat4x4<f32>;
    var sum10: mat4x4<f32>;
    var sum11: mat4x4<f32>;
    let row_group = thread / SIDE;
    let column_group = thread % SIDE;
    let i0 = first_row + 4u * row_group;
    let j0 = first_column + 4u * column_group;
    // Where all of a thread's entries lie past the document there is nothing to sum.
    let has_entries = i0 < doc.num_tokens && j0 < doc.num_tokens;
    let columns_at = select(STAGED, 0u, is_diagonal);
    let num_groups = select(2u * GROUPS, GROUPS, is_diagonal);
    for (var first_chunk = 0u; first_chunk < params.num_chunks; first_chunk += STEP_CHUNKS) {
        for (var task = thread; task < num_groups * STEP_CHUNKS; task += THREADS) {
            let is_column = task >= GROUPS * STEP_CHUNKS;
            let group = task / STEP_CHUNKS % GROUPS;
            let i = select(first_row, first_column, is_column) + 4u * group;
            stage(doc, i, group, first_chunk, task % STEP_CHUNKS, select(0u, STAGED, is_column));
        }
        workgroupBarrier();
        if has_entries {
            for (var plane = 0u; plane < STEP_CHUNKS; plane++) {
                for (var k = 0u; k < CHUNK_DIM; k++) {
                    let x_at = plane * PLANE + k * GROUPS + row_group;
                    let y_at = plane * PLANE + k * GROUPS + columns_at + column_group;
                    let x0 = staged[x_at];
                    let x1 = staged[x_at + SIDE];
                    let y0 = staged[y_at];
                    let y1 = staged[y_at + SIDE];
                    sum00 = add_outer(sum00, x0, y0);
                    sum01 = add_outer(sum01, x0, y1);
                    sum10 = add_outer(sum10, x1, y0);
                    sum11 = add_outer(sum11, x1, y1);
                }
            }
        }
        workgroupBarrier();
    }

    let i1 = i0 + TILE / 2u;
    let j1 = j0 + TILE / 2u;
    store(doc, i0, j0, sum00);
    store(doc, i0, j1, sum01);
    store(doc, i1, j0, sum10);
    store(doc, i1, j1, sum11);
    if !is_diagonal {
        store(doc, j0, i0, transpose(sum00));
        store(doc, j1, i0, transpose(sum01));
        store(doc, j0, i1, transpose(sum10));
        store(doc, j1, i1, transpose(sum11));
    }
}

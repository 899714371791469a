// Pairwise dot products within each document, symmetric: a block a tile of TILE x TILE entries with
// row_tile <= column_tile, stored there and mirrored.
//
//     gram[i][j] = sum over k of (x_ik - c_k) (x_jk - c_k),   c = 0 unless is_centred
//
// 1. f16, bf16 and i8 go through the tensor cores: products exact, sums in f32 (i8: in i32, exact). Four warps have
//    32 x 32 entries each. Rows come in stages of 128 bytes, the next stage in flight while one is multiplied; the
//    8 chunks of a row are permuted by the row's number, so that neither the copies nor ldmatrix meet bank conflicts.
// 2. f32 tokens, and all centred ones, go through f32 multiply-adds. Centring is there for precision, and the tensor
//    cores could only have it by rounding x - c to 16 bits, or by subtracting x_i . c afterwards, where the digits that
//    centring saves are already gone. At 180 tokens of 128 components the f32 units need a tenth of the time that the
//    tokens take to arrive over PCIe.
//
// tokens   [tokens of the batch, num_chunks] chunks of 16 bytes
// docs     [documents]
// tiles    [num_items]
// centres  [documents, num_chunks, CHUNK_DIM] f32, read only if is_centred
// matrix   rows of gram_stride(n) f32 from each document's gram_start; entries past column n are undefined

#include "shared/ragged.cuh"
#include "shared/tokens.cuh"

constexpr unsigned THREADS = 128;
static_assert(TILE == 64, "the threads' shares of a tile");

// Where a tile lies.
struct Place {
    const uint4 *rows;
    unsigned n, num_chunks, first_row, first_column;
};

// Chunk c of a token of the document; valid or not, the address is one of the document.
DEVICE const uint4 *chunk_at(const Place &place, unsigned token, unsigned c, bool &valid) {
    valid = token < place.n && c < place.num_chunks;
    return valid ? place.rows + static_cast<size_t>(token) * place.num_chunks + c : place.rows;
}

// ---- f32: a thread has 8 rows and 4 columns ----

constexpr unsigned STEP = 16;
constexpr unsigned STEP_CHUNKS = STEP / CHUNK_DIM;
constexpr unsigned FETCHES = 2 * TILE * STEP_CHUNKS / THREADS;

struct FmaStage {
    float rows[STEP][TILE];
    float columns[STEP][TILE];
};

DEVICE void fetch(uint4 fetched[FETCHES], const Place &place, unsigned first_chunk) {
#pragma unroll
    for (unsigned f = 0; f < FETCHES; f++) {
        const unsigned slot = f * THREADS + thread_idx();
        const unsigned line = slot % (2 * TILE), c = first_chunk + slot / (2 * TILE);
        const unsigned token = line < TILE ? place.first_row + line : place.first_column + line - TILE;
        bool valid;
        const uint4 *at = chunk_at(place, token, c, valid);
        fetched[f] = valid ? *at : uint4{0, 0, 0, 0};
    }
}

DEVICE void stash(FmaStage &stage, const uint4 fetched[FETCHES], const Place &place, unsigned first_chunk,
                  const float *centre) {
#pragma unroll
    for (unsigned f = 0; f < FETCHES; f++) {
        const unsigned slot = f * THREADS + thread_idx();
        const unsigned line = slot % (2 * TILE), step_chunk = slot / (2 * TILE), c = first_chunk + step_chunk;
        float values[CHUNK_DIM];
        unpack_chunk(fetched[f], values);
        if (centre != nullptr && c < place.num_chunks) {
#pragma unroll
            for (unsigned k = 0; k < CHUNK_DIM; k++) {
                values[k] -= centre[c * CHUNK_DIM + k];
            }
        }
        float(*lines)[TILE] = line < TILE ? stage.rows : stage.columns;
#pragma unroll
        for (unsigned k = 0; k < CHUNK_DIM; k++) {
            lines[step_chunk * CHUNK_DIM + k][line % TILE] = values[k];
        }
    }
}

DEVICE void multiply(float sums[8][4], const FmaStage &stage, unsigned row, unsigned column) {
#pragma unroll 4
    for (unsigned k = 0; k < STEP; k++) {
        const float4 low = *reinterpret_cast<const float4 *>(&stage.rows[k][row]);
        const float4 high = *reinterpret_cast<const float4 *>(&stage.rows[k][row + 4]);
        const float4 right = *reinterpret_cast<const float4 *>(&stage.columns[k][column]);
        const float a[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        const float b[4] = {right.x, right.y, right.z, right.w};
#pragma unroll
        for (unsigned r = 0; r < 8; r++) {
#pragma unroll
            for (unsigned q = 0; q < 4; q++) {
                sums[r][q] = fma32(a[r], b[q], sums[r][q]);
            }
        }
    }
}

DEVICE void gram_fma(FmaStage stages[2], const Place &place, const float *centre, float *out) {
    const unsigned row = thread_idx() / 16 * 8, column = thread_idx() % 16 * 4;
    const unsigned num_steps = (place.num_chunks + STEP_CHUNKS - 1) / STEP_CHUNKS;
    uint4 fetched[FETCHES];
    float sums[8][4] = {};
    fetch(fetched, place, 0);
    stash(stages[0], fetched, place, 0, centre);
    sync_block();
    for (unsigned step = 0; step < num_steps; step++) {
        const unsigned next_chunk = (step + 1) * STEP_CHUNKS;
        if (step + 1 < num_steps) {
            fetch(fetched, place, next_chunk);
        }
        multiply(sums, stages[step % 2], row, column);
        if (step + 1 < num_steps) {
            stash(stages[(step + 1) % 2], fetched, place, next_chunk, centre);
        }
        sync_block();
    }
    const unsigned n = place.n, stride = gram_stride(n), i0 = place.first_row + row, j0 = place.first_column + column;
    // Four columns at a time: j0 is a multiple of 4, and so is the stride that they stay within.
#pragma unroll
    for (unsigned r = 0; r < 8; r++) {
        if (i0 + r < n && j0 < n) {
            *reinterpret_cast<float4 *>(&out[static_cast<size_t>(i0 + r) * stride + j0]) =
                float4{sums[r][0], sums[r][1], sums[r][2], sums[r][3]};
        }
    }
    // A tile on the diagonal is its own mirror image, bit for bit. Elsewhere all 8 rows are below n.
    if (place.first_row == place.first_column) {
        return;
    }
#pragma unroll
    for (unsigned q = 0; q < 4; q++) {
        if (j0 + q < n) {
            float *mirrored = &out[static_cast<size_t>(j0 + q) * stride + i0];
            *reinterpret_cast<float4 *>(mirrored) = float4{sums[0][q], sums[1][q], sums[2][q], sums[3][q]};
            *reinterpret_cast<float4 *>(mirrored + 4) = float4{sums[4][q], sums[5][q], sums[6][q], sums[7][q]};
        }
    }
}

// ---- tensor cores ----

#if HAS_MMA

constexpr unsigned STAGE_CHUNKS = 8;

struct MmaStage {
    uint4 rows[TILE * STAGE_CHUNKS];
    uint4 columns[TILE * STAGE_CHUNKS];
};

// Place of a chunk in a stage: 8 neighbouring rows have any one chunk in 8 different groups of banks.
DEVICE unsigned swizzled(unsigned line, unsigned c) { return line * STAGE_CHUNKS + (c ^ (line % 8)); }

DEVICE void begin_copies(uint4 *lines, const Place &place, unsigned first_token, unsigned first_chunk) {
#pragma unroll
    for (unsigned f = 0; f < TILE * STAGE_CHUNKS / THREADS; f++) {
        const unsigned slot = f * THREADS + thread_idx();
        const unsigned line = slot / STAGE_CHUNKS, c = slot % STAGE_CHUNKS;
        bool valid;
        const uint4 *from = chunk_at(place, first_token + line, first_chunk + c, valid);
        async_copy(&lines[swizzled(line, c)], from, valid);
    }
}

DEVICE void begin_stage(MmaStage &stage, const Place &place, unsigned first_chunk) {
    begin_copies(stage.rows, place, place.first_row, first_chunk);
    if (place.first_row != place.first_column) {
        begin_copies(stage.columns, place, place.first_column, first_chunk);
    }
}

DEVICE void gram_mma(MmaStage stages[2], const Place &place, float *out) {
    const unsigned lane = thread_idx() % 32, warp = thread_idx() / 32;
    const unsigned row = warp % 2 * 32, column = warp / 2 * 32;
    const bool is_diagonal = place.first_row == place.first_column;
    // Below the diagonal, or past the last token: nothing to do but to copy.
    const bool is_idle = (is_diagonal && row > column) || place.first_row + row >= place.n ||
                         place.first_column + column >= place.n;
    Sum sums[2][4][4] = {};
    begin_stage(stages[0], place, 0);
    async_commit();
    for (unsigned first = 0, s = 0; first < place.num_chunks; first += STAGE_CHUNKS, s++) {
        if (first + STAGE_CHUNKS < place.num_chunks) {
            begin_stage(stages[(s + 1) % 2], place, first + STAGE_CHUNKS);
        }
        async_commit();
        async_wait<1>();
        sync_block();
        const uint4 *rows = stages[s % 2].rows;
        const uint4 *columns = is_diagonal ? rows : stages[s % 2].columns;
        const unsigned chunks = place.num_chunks - first < STAGE_CHUNKS ? place.num_chunks - first : STAGE_CHUNKS;
        if (!is_idle) {
#pragma unroll 2
            for (unsigned c = 0; c < chunks; c += 2) {
                unsigned a[2][4], b[2][4];
#pragma unroll
                for (unsigned half = 0; half < 2; half++) {
                    const unsigned above = row + 16 * half, left = column + 16 * half;
                    load_matrices(a[half], &rows[swizzled(above + lane % 16, c + lane / 16)]);
                    load_matrices(b[half],
                                  &columns[swizzled(left + lane % 8 + lane / 16 * 8, c + lane / 8 % 2)]);
                }
#pragma unroll
                for (unsigned r = 0; r < 2; r++) {
#pragma unroll
                    for (unsigned q = 0; q < 4; q++) {
                        mma(sums[r][q], a[r], &b[q / 2][q % 2 * 2]);
                    }
                }
            }
        }
        // The next turn's copies land where this one has read.
        sync_block();
    }
    if (is_idle) {
        return;
    }
    const unsigned n = place.n, stride = gram_stride(n);
    const bool is_crossed = is_diagonal && row == column;
#pragma unroll
    for (unsigned r = 0; r < 2; r++) {
#pragma unroll
        for (unsigned q = 0; q < 4; q++) {
#pragma unroll
            for (unsigned below = 0; below < 2; below++) {
                const unsigned i = place.first_row + row + 16 * r + lane / 4 + 8 * below;
                const unsigned j = place.first_column + column + 8 * q + lane % 4 * 2;
                const float left = static_cast<float>(sums[r][q][2 * below]);
                const float right = static_cast<float>(sums[r][q][2 * below + 1]);
                float *upper = &out[static_cast<size_t>(i) * stride + j];
                float *mirrored = &out[static_cast<size_t>(j) * stride + i];
                if (is_crossed) {
                    if (i <= j && j < n) {
                        upper[0] = left;
                        mirrored[0] = left;
                    }
                    if (i <= j + 1 && j + 1 < n) {
                        upper[1] = right;
                        mirrored[stride] = right;
                    }
                } else if (j < n) {
                    // All rows are below n here. A quad of lanes fills 32 bytes of a row, which memory writes as a whole,
                    // and so do eight lanes of a mirrored one. The right one of two columns may be the row's padding.
                    *reinterpret_cast<float2 *>(upper) = float2{left, right};
                    mirrored[0] = left;
                    if (j + 1 < n) {
                        mirrored[stride] = right;
                    }
                }
            }
        }
    }
}

#endif

union GramShared {
    FmaStage fma[2];
#if HAS_MMA
    MmaStage mma[2];
#endif
};

KERNEL(THREADS)
NAMED(gram)(const uint4 *__restrict__ tokens, const Doc *__restrict__ docs, const Tile *__restrict__ tiles,
            const float *__restrict__ centres, float *__restrict__ matrix, GramParams params) {
    SHARED_MEMORY(GramShared, shared);
    if (block_idx() >= params.num_items) {
        return;
    }
    const Tile tile = tiles[block_idx()];
    const Doc doc = docs[tile.doc];
    const Place place = {tokens + static_cast<size_t>(doc.first_token) * params.num_chunks, doc.num_tokens,
                         params.num_chunks, tile.row_tile * TILE, tile.column_tile * TILE};
    float *out = matrix + doc.gram_start;
#if HAS_MMA
    if (params.is_centred == 0) {
        gram_mma(shared.mma, place, out);
        return;
    }
#endif
    const float *centre = centres + static_cast<size_t>(doc.doc_idx) * params.num_chunks * CHUNK_DIM;
    gram_fma(shared.fma, place, params.is_centred != 0 ? centre : nullptr, out);
}
REGISTER_KERNEL(NAMED(gram), THREADS)

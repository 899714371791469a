// The score of each pair: the largest of the maxima of its chunks for each query token, and the sum over these.
// A workgroup a pair; thread t takes query tokens t, t + 32, .., and the sums meet in a fixed order, which depends on
// the query alone.

struct MaxsimPair {
    first_maximum: u32,
    chunk_stride: u32,
    num_chunks: u32,
    num_query_tokens: u32,
}

@group(0) @binding(0) var<storage, read> maxima: array<f32>;
@group(0) @binding(1) var<storage, read> pairs: array<MaxsimPair>;
@group(0) @binding(2) var<storage, read_write> scores: array<f32>;
@group(0) @binding(3) var<uniform> params: MaxsimParams;

const THREADS: u32 = 32u;

var<workgroup> sums: array<f32, 32>;

@compute @workgroup_size(32)
fn maxsim_sum(
    @builtin(workgroup_id) workgroup_id: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let pair_idx = linear_idx(workgroup_id, num_workgroups);
    if pair_idx >= params.num_items {
        return;
    }
    let pair = pairs[pair_idx];
    var sum = 0.0;
    for (var i = thread; i < pair.num_query_tokens; i += THREADS) {
        var best = maxima[pair.first_maximum + i];
        for (var chunk = 1u; chunk < pair.num_chunks; chunk++) {
            best = max(best, maxima[pair.first_maximum + chunk * pair.chunk_stride + i]);
        }
        if params.scoring == CLAMPED {
            best = max(best, 0.0);
        }
        sum += best;
    }
    sums[thread] = sum;
    for (var width = THREADS / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if thread < width {
            sums[thread] += sums[thread + width];
        }
    }
    if thread == 0u {
        scores[pair_idx] = sums[0];
    }
}

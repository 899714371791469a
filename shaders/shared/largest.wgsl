// The largest of one value a thread, by workgroup memory.

var<workgroup> largest_pairs: array<vec2<u32>, SELECTION_THREADS>;

/// Before the first call of `largest`.
fn start_largest(thread: u32) {}

/// Largest `key` of the workgroup and the smallest `value` that comes with it, the same for all threads.
/// For all threads at once.
fn largest(key: u32, value: u32, thread: u32) -> vec2<u32> {
    largest_pairs[thread] = vec2<u32>(key, value);
    for (var width = SELECTION_THREADS / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if thread < width {
            let own = largest_pairs[thread];
            let other = largest_pairs[thread + width];
            if other.x > own.x || (other.x == own.x && other.y < own.y) {
                largest_pairs[thread] = other;
            }
        }
    }
    return workgroupUniformLoad(&largest_pairs[0]);
}

// The largest of one value a thread, by subgroup operations; those that have the largest of a subgroup speak for it. The
// result is that of `largest.wgsl` for subgroups of any size, and whichever threads of a subgroup a device runs together:
// nothing says that those of a loop before have met again.

var<workgroup> largest_key: atomic<u32>;
var<workgroup> largest_value: atomic<u32>;
var<workgroup> largest_pair: vec2<u32>;

/// Before the first call of `largest`.
fn start_largest(thread: u32) {
    if thread == 0u {
        atomicStore(&largest_key, 0u);
        atomicStore(&largest_value, 0xffffffffu);
    }
    workgroupBarrier();
}

/// Largest `key` of the workgroup and the smallest `value` that comes with it, the same for all threads.
/// For all threads at once.
fn largest(key: u32, value: u32, thread: u32) -> vec2<u32> {
    if key == subgroupMax(key) {
        atomicMax(&largest_key, key);
    }
    workgroupBarrier();
    let top = atomicLoad(&largest_key);
    let top_value = select(0xffffffffu, value, key == top);
    let least = subgroupMin(top_value);
    if key == top && top_value == least {
        atomicMin(&largest_value, top_value);
    }
    workgroupBarrier();
    if thread == 0u {
        largest_pair = vec2<u32>(top, atomicLoad(&largest_value));
        atomicStore(&largest_key, 0u);
        atomicStore(&largest_value, 0xffffffffu);
    }
    return workgroupUniformLoad(&largest_pair);
}

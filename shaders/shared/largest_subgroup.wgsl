// The largest of one value a thread, by subgroup operations; one thread of each subgroup speaks for it. The result is
// that of `largest.wgsl` for subgroups of any size.

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
    let speaks = subgroupBroadcastFirst(thread) == thread;
    let subgroup_key = subgroupMax(key);
    if speaks {
        atomicMax(&largest_key, subgroup_key);
    }
    workgroupBarrier();
    let top = atomicLoad(&largest_key);
    let subgroup_value = subgroupMin(select(0xffffffffu, value, key == top));
    if speaks {
        atomicMin(&largest_value, subgroup_value);
    }
    workgroupBarrier();
    if thread == 0u {
        largest_pair = vec2<u32>(top, atomicLoad(&largest_value));
        atomicStore(&largest_key, 0u);
        atomicStore(&largest_value, 0xffffffffu);
    }
    return workgroupUniformLoad(&largest_pair);
}

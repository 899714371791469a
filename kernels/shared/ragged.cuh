// Ragged batches and parameter blocks, as src/kernel.rs has them: the only place where offsets are decoded.
#pragma once

#include "constants.cuh"
#include "portable.cuh"

struct alignas(16) Doc {
    unsigned first_token;
    unsigned num_tokens;
    unsigned gram_start;
    unsigned num_first;
    unsigned max_kept;
    unsigned doc_idx;
    unsigned first_removed;
    unsigned padding;
};

struct alignas(16) Tile {
    unsigned doc;
    unsigned row_tile;
    unsigned column_tile;
    unsigned padding;
};

struct GramParams {
    unsigned num_items;
    unsigned num_chunks;
    unsigned is_centred;
    unsigned padding;
};

struct SelectionParams {
    unsigned num_items;
    unsigned scoring;
    unsigned is_project;
    float inside;
    float stop;
    float rounding;
    float margin;
    unsigned max_steps;
    unsigned is_resumed;
    unsigned padding[3];
};

struct alignas(16) TokenState {
    float upper;
    float level;
    unsigned num_support;
    unsigned status;
};

struct alignas(16) DocResult {
    unsigned num_kept;
    unsigned status;
    unsigned num_undecided;
    float unit;
};

struct alignas(16) MaxsimItem {
    unsigned first_query_token;
    unsigned num_query_tokens;
    unsigned first_token;
    unsigned num_tokens;
    unsigned first_maximum;
    unsigned first_match;
    unsigned padding[2];
};

struct alignas(16) MaxsimPair {
    unsigned first_maximum;
    unsigned chunk_stride;
    unsigned num_chunks;
    unsigned num_query_tokens;
};

struct MaxsimParams {
    unsigned num_items;
    unsigned num_chunks;
    unsigned scoring;
    unsigned has_matches;
    unsigned has_query_scales;
    unsigned has_token_scales;
    unsigned is_summed;
    unsigned padding;
};

struct CeilingParams {
    unsigned num_items;
    unsigned num_steps;
    float factor;
    float summand;
};

// Entries from one row of a document's Gram matrix to the next. Starts and strides are multiples of 4 entries.
DEVICE unsigned gram_stride(unsigned num_tokens) { return (num_tokens + 3) & ~3u; }

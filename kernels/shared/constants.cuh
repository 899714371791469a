// The constants of src/kernel.rs; a test compares.
#pragma once

constexpr unsigned TILE = 64;
constexpr unsigned FACE_CAP = 32;
constexpr unsigned SELECTION_THREADS = 64;
constexpr unsigned DOMINANCE_THREADS = 64;
constexpr unsigned COMPACT_THREADS = 64;
constexpr unsigned PLACE_STRIDE = 64;
constexpr unsigned MAXSIM_CHUNK = 1024;
constexpr unsigned MAXSIM_QUERY_TILE = 32;
constexpr unsigned MAXSIM_WIDE_QUERY_TILE = 256;
constexpr unsigned MAXSIM_WIDE_CHUNKS = 16;
constexpr unsigned PLAIN = 0;
constexpr unsigned CLAMPED = 1;
constexpr unsigned TOKEN_SOLVED = 0;
constexpr unsigned TOKEN_STALLED = 1;
constexpr unsigned TOKEN_NEEDED = 2;
constexpr unsigned DOC_DONE = 0;
constexpr unsigned DOC_TOO_FINE = 1;
constexpr unsigned DOC_UNFINISHED = 2;

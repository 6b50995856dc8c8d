// AMX tiles: permission, configuration and the bf16 product. Tiles are per thread.
#pragma once

#include "simd.h"

namespace atom {

bool amx_request();  // asks the kernel for tile state, once per process; true if granted

#ifdef ATOM_AMX

// Rows of tiles 0-5 in force; 0: no configuration.
extern thread_local int amx_rows;

// C tiles 0-3 and A tiles 4, 5 of `rows` rows (a product takes as many cycles as A has rows), B
// tiles 6, 7 of 16; all of 64-byte rows. The tiles' contents are lost.
inline void amx_configure(int rows = 16) {
    if (amx_rows == rows) return;
    struct alignas(64) Config {
        uint8_t bytes[64];
    } config = {};
    config.bytes[0] = 1;  // palette
    for (int t = 0; t < 8; t++) {
        config.bytes[16 + 2 * t] = 64;  // bytes in a row
        config.bytes[48 + t] = uint8_t(t < 6 ? rows : 16);
    }
    // gcc 12's _tile_loadconfig tells the compiler of 8 bytes only; say that all 64 are read.
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
    amx_rows = rows;
}

inline void amx_release() {
    if (amx_rows == 0) return;
    __asm__ volatile("tilerelease");
    amx_rows = 0;
}

// gcc's tile loads and stores do not say that they touch memory: fence the compiler round them.
inline void amx_fence() { __asm__ volatile("" ::: "memory"); }

#else

inline void amx_release() {}

#endif

}  // namespace atom

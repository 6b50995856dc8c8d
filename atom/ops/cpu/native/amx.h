// AMX tiles: permission, configuration and the bf16 product. Tiles are per thread.
#pragma once

#include "simd.h"

namespace atom {

bool amx_request();  // asks the kernel for tile state, once per process; true if granted

#ifdef ATOM_AMX

extern thread_local bool amx_in_use;

// All eight tiles as 16 rows of 64 bytes: C 0-3, A 4-5, B 6-7 by convention.
inline void amx_configure() {
    if (amx_in_use) return;
    struct alignas(64) Config {
        uint8_t bytes[64];
    } config = {};
    config.bytes[0] = 1;  // palette
    for (int t = 0; t < 8; t++) {
        config.bytes[16 + 2 * t] = 64;  // bytes in a row
        config.bytes[48 + t] = 16;      // rows
    }
    // gcc 12's _tile_loadconfig tells the compiler of 8 bytes only; say that all 64 are read.
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
    amx_in_use = true;
}

inline void amx_release() {
    if (!amx_in_use) return;
    __asm__ volatile("tilerelease");
    amx_in_use = false;
}

// gcc's tile loads and stores do not say that they touch memory: fence the compiler round them.
inline void amx_fence() { __asm__ volatile("" ::: "memory"); }

#else

inline void amx_release() {}

#endif

}  // namespace atom

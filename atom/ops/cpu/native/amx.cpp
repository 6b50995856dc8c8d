#include "amx.h"

#include <sys/syscall.h>
#include <unistd.h>

namespace atom {

#ifdef ATOM_AMX

thread_local int amx_rows = 0;

bool amx_request() {
    constexpr int kArchReqXcompPerm = 0x1023, kXfeatureTiledata = 18;
    static const bool granted =
        syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTiledata) == 0;
    return granted;
}

#else

bool amx_request() { return false; }

#endif

}  // namespace atom

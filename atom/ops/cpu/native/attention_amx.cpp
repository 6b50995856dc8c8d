// Attention on AMX tiles.
#include "attention.h"

namespace atom {
bool attention_amx_serves(const AttentionArgs&) { return false; }
int64_t attention_amx_scratch(const AttentionArgs&, int64_t) { return 0; }
void attention_amx(const AttentionArgs& a, const AttentionTile& t, uint8_t* s) { attention_rows(a, t, s); }
}  // namespace atom

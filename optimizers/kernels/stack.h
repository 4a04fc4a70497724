// Stacks of small matrices, see stack.py. A row of the table is a stack, and a block of it whole
// matrices. Beside the entries, which are turned, a block has values per row, column and matrix, `v`,
// and sums of them, `r`: those of a kind that has `count` a matrix are [count][matrices].

// [n][count] in memory as [count][n], or back; those of 3 x 3 convolutions without a loop.
template <int COUNT, class X>
static void turn_by(X* __restrict turned, X* __restrict plain, i64 n, i64 any, bool back) {
  const i64 count = COUNT ? COUNT : any;
  if (back) {
    for (i64 i = 0; i < n; i++)
      for (i64 k = 0; k < count; k++) plain[i * count + k] = turned[k * n + i];
    return;
  }
  for (i64 strip = 0; strip < n; strip += STRIP) {  // so few at once stay in the nearest cache
    const i64 end = strip + STRIP < n ? strip + STRIP : n;
    for (i64 k = 0; k < count; k++) ahead(plain + strip * count + k * STRIP);
    for (i64 k = 0; k < count; k++)
      OMP(omp simd)
      for (i64 i = strip; i < end; i++) turned[k * n + i] = plain[i * count + k];
  }
}

template <class X> static void turn(X* turned, X* plain, i64 n, i64 count, bool back) {
  (count == 3 ? turn_by<3, X> : count == 9 ? turn_by<9, X> : turn_by<0, X>)(turned, plain, n, count, back);
}

static void turn_any(char* turned, char* plain, i64 n, i64 count, int width, bool back) {
  if (width == 2) turn((short*)turned, (short*)plain, n, count, back);
  if (width == 4) turn((float*)turned, (float*)plain, n, count, back);
  if (width == 8) turn((double*)turned, (double*)plain, n, count, back);
}

static void block(const Call* c, int pass, i64 item, char* scratch) {
  const i64 row = c->item_rows[item], start = c->item_starts[item];
  const i64 width = c->widths[row], height = c->heights[row], entries = width * height;
  const i64 first = start / entries;
  const i64 n = length_of(item, c->items, c->sizes, c->item_rows, c->item_starts) / entries;
  const i64 size[] = {c->sizes[row], height, width}, counts[] = {0, height, width, 1};
  const double* s = c->slots + row * SLOTS;
  double *sums = c->sums + item * SUMS, parts[SUMS + 1], *r[SUMS + 1];
  const T factor = (T)(c->sign * (c->scales ? c->scales[row] : c->scale));
  char *turned[ENTRY_COLUMNS], *memory[ENTRY_COLUMNS];
  void* at[ENTRY_COLUMNS + VECTORS + SUMS];
  T* v[VECTORS];
  for (int k = 0; k < ENTRY_COLUMNS; k++) {
    memory[k] = (char*)c->columns[k][row] + start * bytes_of[k];
    turned[k] = scratch;
    scratch += BLOCK * 8;
    turn_any(turned[k], memory[k], n, entries, bytes_of[k], false);
  }
  for (int k = 0; k < VECTORS; k++) {
    const i64 count = counts[vector_kinds[k]];
    v[k] = (T*)scratch;
    scratch += BLOCK * 8;
    if (vector_states[k] >= 0)
      turn(v[k], (T*)c->columns[vector_states[k]][row] + first * count, n, count, false);
  }
  for (int k = 0; k < SUMS; k++) {
    r[k] = (double*)scratch;
    scratch += BLOCK * 8;
    if (sum_kinds[k]) __builtin_memset(r[k], 0, counts[sum_kinds[k]] * n * 8);
    else if (sum_passes[k] == pass) sums[k] = 0;
  }
  for (int local = 0; local < LOCALS; local++) {
    values_of[local](n, size, s, v, r);
    if (!entries_of[pass * LOCALS + local]) continue;
    for (i64 e = 0; e < entries; e++) {
      const i64 index[] = {0, e / width, e % width, 0};
      for (int k = 0; k < ENTRY_COLUMNS; k++) at[k] = turned[k] + e * n * bytes_of[k];
      for (int k = 0; k < VECTORS; k++) at[ENTRY_COLUMNS + k] = v[k] + index[vector_kinds[k]] * n;
      for (int k = 0; k < SUMS; k++)
        at[ENTRY_COLUMNS + VECTORS + k] = r[k] + index[sum_kinds[k]] * n;
      for (int k = 0; k < SUMS; k++) parts[k] = 0;
      entries_of[pass * LOCALS + local](n, at, s, factor, (T)c->bound, parts);
      for (int k = 0; k < SUMS; k++)
        if (!sum_kinds[k] && sum_passes[k] == pass) sums[k] += parts[k];
    }
  }
  if (pass < PASSES - 1) return;
  for (int k = 0; k < ENTRY_COLUMNS; k++)
    if (changes[k]) turn_any(turned[k], memory[k], n, entries, bytes_of[k], true);
  for (int k = 0; k < VECTORS; k++) {
    const i64 count = counts[vector_kinds[k]];
    if (vector_results[k] >= 0)
      turn(v[k], (T*)c->columns[vector_results[k]][row] + first * count, n, count, true);
  }
}

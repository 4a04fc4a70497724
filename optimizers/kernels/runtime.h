// What every kernel shares: arithmetic as torch defines it, and the walk over tensors and blocks.
//
// Parameters are rows of a table of pointers. A row is cut into blocks that fit the cache, blocks are
// shared among threads, and every result depends on a block alone or is summed in the order of the
// blocks: the number of threads changes no bit.

typedef long long i64;
struct bf16 { unsigned short bits; };

#ifdef _OPENMP
#define OMP(clauses) PRAGMA(clauses)
#define PRAGMA(text) _Pragma(#text)
#else
#define OMP(clauses)
#endif
#define BLOCK 16384
#define NORM_BLOCK 131072

// Intel's own prefetch stops at every page: asking for memory ahead of time makes a step a tenth to a third
// faster there. AMD's needs no help, which costs it a tenth.
#ifdef __x86_64__
static const bool STOPS_AT_PAGES = __builtin_cpu_is("intel");
#else
static const bool STOPS_AT_PAGES = false;
#endif
#define STRIP 64
#define DISTANCE 512
// To GCC, asking changes nothing and returns nothing, and so it drops the call of a function that only asks.
template <class X> __attribute__((always_inline)) static inline void ahead(const X* x) {
  if (STOPS_AT_PAGES)
    for (int byte = 0; byte < (int)(STRIP * sizeof(X)); byte += 64)
      __builtin_prefetch((const char*)(x + DISTANCE) + byte, 0, 3);
}

static inline float root(float x) { return __builtin_sqrtf(x); }
static inline double root(double x) { return __builtin_sqrt(x); }
static inline float power(float x, double y) { return (float)__builtin_pow(x, y); }
static inline double power(double x, double y) { return __builtin_pow(x, y); }
static inline float logarithm(float x) { return (float)__builtin_log(x); }
static inline double logarithm(double x) { return __builtin_log(x); }
static inline float exponential(float x) { return (float)__builtin_exp(x); }
static inline double exponential(double x) { return __builtin_exp(x); }
static inline float magnitude(float x) { return __builtin_fabsf(x); }
static inline double magnitude(double x) { return __builtin_fabs(x); }
template <class X> static inline X sign(X x) { return (X)((x > 0) - (x < 0)); }
// NaN passes through all of these, as it does in torch
template <class X> static inline X larger(X a, X b) {
  const X most = a > b ? a : b;  // in two steps, or compilers see a branch and do not vectorize
  return a != a ? a : most;
}
template <class X> static inline X smaller(X a, X b) {
  const X least = a < b ? a : b;
  return a != a ? a : least;
}
template <class X> static inline X at_least(X x, X low) { return x < low ? low : x; }
template <class X> static inline X at_most(X x, X high) { return x > high ? high : x; }
template <class X> static inline X clip(X x, X bound) { return at_most(at_least(x, -bound), bound); }

static inline float load(float x) { return x; }
static inline double load(double x) { return x; }
#ifdef __FLT16_MAX__  // older Clangs lack it; only parameters in float16 need it
static inline float load(_Float16 x) { return (float)x; }
static inline void store(_Float16& to, float x) { to = (_Float16)x; }
#endif
static inline float load(bf16 x) {
  unsigned bits = (unsigned)x.bits << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, 4);
  return wide;
}
static inline void store(float& to, float x) { to = x; }
static inline void store(double& to, double x) { to = x; }
static inline void store(bf16& to, float x) {  // to the nearest, ties to even
  unsigned bits;
  __builtin_memcpy(&bits, &x, 4);
  unsigned rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.bits = (unsigned short)(x != x ? 0x7fc0 : rounded);
}

// As in precision.py: the lost part of a value counts float32 numbers.
static inline unsigned bits_of(float x) {
  unsigned bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}
static inline float restored(float rounded, short lost) {
  const unsigned bits = bits_of(rounded);
  const int least = -(int)(bits & 0x7fffffff);
  const unsigned sum = bits + (unsigned)(lost < least ? least : lost);
  float wide;
  __builtin_memcpy(&wide, &sum, 4);
  return wide;
}
static inline short lost(float wide, float rounded) {
  const int difference = (int)(bits_of(wide) - bits_of(rounded));
  const int least = difference < -32768 ? -32768 : difference;
  return (short)(least > 32767 ? 32767 : least);
}

// A value per row or column of a matrix: in which slot entries read it, if they read it per row,
// whether it is one per column, and which column of the table holds it, if it is state.
struct Vector { int slot, per_column, state; };
// As in kernel.py. A layout is {dimensions, sizes..., strides of column 0..., of column 1..., ...}
// in elements, outermost dimension first; null for rows whose columns are dense and alike. See table.py.
struct Call {
  i64 rows, items;
  const i64* sizes;           // entries of each row
  const i64* widths;          // columns of each row's matrices, or null
  const i64* heights;         // rows of them, or null
  const i64* item_rows;       // blocks: which row, and where in it
  const i64* item_starts;
  void* const* const* columns;  // [column][row]
  float* const* steps;        // updates that each row's state has absorbed
  const i64* const* layouts;  // [row], or null when all are dense
  const double* hyper;
  const double* scales;       // [row], or null
  const T* const* unit_scales;  // [row]: a scale per unit of the row, or null
  const i64* unit_sizes;
  double scale, bound, sign;
  double* slots;              // [row][SLOTS]
  double* sums;               // [item][SUMS]
  i64 threads, advance;
};

// Entries of a block: up to the next one of its row, or to the row's end.
static i64 length_of(i64 item, i64 items, const i64* sizes, const i64* rows, const i64* starts) {
  const bool more = item + 1 < items && rows[item + 1] == rows[item];
  return (more ? starts[item + 1] : sizes[rows[item]]) - starts[item];
}
// ---- kernel ----

// Between the two parts of this file stand the kernel's own functions and tables, see source.py. Of a
// column: the size of an entry, `bytes_of`, and whether it `changes`. Of a sum of entries: in which slot
// it is, or -1, which pass makes it, and of what kind it is: one a row of the table (0), or one a row (1),
// column (2) or matrix (3) of what that holds.

// How many blocks a thread takes at a time: asking seldom, and waiting for the last one not long.
static int chunk_of(i64 items, i64 threads) {
  i64 chunk = items / (threads * 8);
  return chunk < 1 ? 1 : chunk > 8 ? 8 : (int)chunk;
}

// Copies n entries of a column with this layout, the first of them number `start`, or copies them back.
static void move(char* dense, char* strided, const i64* layout, i64 column, i64 start, i64 n,
                 int width, bool back) {
  const i64 dims = layout[0], *sizes = layout + 1, *strides = sizes + dims * (1 + column);
  i64 index[64], offset = 0;
  for (i64 d = dims - 1, rest = start; d >= 0; d--) {
    index[d] = rest % sizes[d];
    rest /= sizes[d];
    offset += index[d] * strides[d];
  }
  for (i64 i = 0; i < n; i++) {
    char* there = strided + offset * width;
    if (back) __builtin_memcpy(there, dense + i * width, width);
    else __builtin_memcpy(dense + i * width, there, width);
    for (i64 d = dims - 1; d >= 0; d--) {
      offset += strides[d];
      if (++index[d] < sizes[d]) break;
      offset -= sizes[d] * strides[d];
      index[d] = 0;
    }
  }
}

#if !STACK
// One pass over one block; columns with a layout go through scratch memory.
static void block(const Call* c, int pass, i64 item, char* scratch) {
  const i64 row = c->item_rows[item], start = c->item_starts[item];
  const i64 n = length_of(item, c->items, c->sizes, c->item_rows, c->item_starts);
  const i64* layout = c->layouts ? c->layouts[row] : nullptr;
  void* at[ENTRY_COLUMNS];
  for (int k = 0; k < ENTRY_COLUMNS; k++) {
    char* from = (char*)c->columns[k][row];
    at[k] = layout ? scratch + (i64)k * BLOCK * 8 : from + start * bytes_of[k];
    if (layout) move((char*)at[k], from, layout, k, start, n, bytes_of[k], false);
  }
  const double scale = c->sign * (c->scales ? c->scales[row] : c->scale);
  const double* s = c->slots + row * SLOTS;
  double* sums = c->sums + item * SUMS;
  const T* units = c->unit_scales ? c->unit_scales[row] : nullptr;
  if (!units) {
    entries_of[pass](n, at, s, (T)scale, (T)c->bound, sums);
  } else {
    double parts[SUMS + 1];
    const i64 size = c->unit_sizes[row];
    for (int k = 0; k < SUMS; k++)
      if (sum_passes[k] == pass) sums[k] = 0;
    for (i64 done = 0; done < n;) {
      const i64 unit = (start + done) / size, end = (unit + 1) * size - start;
      const i64 m = (end < n ? end : n) - done;
      void* part[ENTRY_COLUMNS];
      for (int k = 0; k < ENTRY_COLUMNS; k++) part[k] = (char*)at[k] + done * bytes_of[k];
      entries_of[pass](m, part, s, (T)(scale * (double)units[unit]), (T)c->bound, parts);
      for (int k = 0; k < SUMS; k++)
        if (sum_passes[k] == pass) sums[k] += parts[k];
      done += m;
    }
  }
  if (layout && pass == PASSES - 1)
    for (int k = 0; k < ENTRY_COLUMNS; k++)
      if (changes[k])
        move((char*)at[k], (char*)c->columns[k][row], layout, k, start, n, bytes_of[k], true);
}

#endif

#if VECTORS && !STACK
// Rows are contiguous matrices. Those of few slabs take all passes in one thread, while they are in its
// cache; larger ones are shared among threads, slab by slab. Slabs depend on the size alone.
#define SLAB 262144
#define SLABS 16
#define ALONE 4  // slabs that are few

struct Matrix {
  const Call* c;
  i64 row, size[3], slabs;  // size: as SIZES
  double scale, *slots;
  T* v[VECTORS];
  double *r[SUMS + 1], sums[SLABS][SUMS + 1];
};

static i64 slabs_of(const Call* c, i64 row) {
  const i64 most = c->sizes[row] / c->widths[row], n = c->sizes[row] / SLAB;
  const i64 wanted = n < 1 ? 1 : n > SLABS ? SLABS : n;
  return wanted < most ? wanted : most;
}

// Points to what a matrix needs in scratch memory; returns how many bytes that is.
static i64 lay_out(Matrix* m, const Call* c, i64 row, char* scratch) {
  const i64 width = c->widths[row], height = c->sizes[row] / width;
  *m = {c, row, {c->sizes[row], height, width}, slabs_of(c, row)};
  m->scale = c->sign * (c->scales ? c->scales[row] : c->scale);
  m->slots = c->slots + row * SLOTS;
  i64 used = 0;
  for (int k = 0; k < SUMS; k++) {
    m->r[k] = (double*)(scratch + used);
    if (sum_kinds[k]) used += 8 * (sum_kinds[k] == 1 ? height : m->slabs * width);
  }
  for (int k = 0; k < VECTORS; k++) {
    const int state = vectors[k].state;
    m->v[k] = state < 0 ? (T*)(scratch + used) : (T*)c->columns[state][row];
    if (state < 0) used += ((vectors[k].per_column ? width : height) * sizeof(T) + 7) / 8 * 8;
  }
  return used;
}

static void slab(Matrix* m, int pass, i64 number) {
  const Call* c = m->c;
  const i64 height = m->size[1], width = m->size[2];
  void* at[ENTRY_COLUMNS + VECTORS + SUMS];
  double s[SLOTS], parts[SUMS + 1], *sums = m->sums[number];
  __builtin_memcpy(s, m->slots, sizeof(s));
  for (int k = 0; k < VECTORS; k++) at[ENTRY_COLUMNS + k] = m->v[k];
  for (int k = 0; k < SUMS; k++) {
    double* columns = m->r[k] + number * width;
    at[ENTRY_COLUMNS + VECTORS + k] = columns;
    sums[k] = 0;
    if (sum_passes[k] == pass && sum_kinds[k] == 2) __builtin_memset(columns, 0, 8 * width);
  }
  const i64 end = (number + 1) * height / m->slabs;
  for (i64 i = number * height / m->slabs; i < end; i++) {
    for (int k = 0; k < ENTRY_COLUMNS; k++)
      at[k] = (char*)c->columns[k][m->row] + i * width * bytes_of[k];
    for (int k = 0; k < VECTORS; k++)
      if (vectors[k].slot >= 0) s[vectors[k].slot] = (double)m->v[k][i];
    entries_of[pass](width, at, s, (T)m->scale, (T)c->bound, parts);
    for (int k = 0; k < SUMS; k++) {
      if (sum_passes[k] != pass) continue;
      if (sum_kinds[k] == 0) sums[k] += parts[k];
      if (sum_kinds[k] == 1) m->r[k][i] = parts[k];
    }
  }
}

static void gather_slabs(Matrix* m, int pass) {
  for (int k = 0; k < SUMS; k++) {
    if (sum_passes[k] != pass) continue;
    if (sum_kinds[k] == 0) m->slots[sum_slots[k]] = 0;
    for (i64 number = 0; number < m->slabs; number++) {
      if (sum_kinds[k] == 0) m->slots[sum_slots[k]] += m->sums[number][k];
      if (sum_kinds[k] == 2 && number)
        for (i64 j = 0; j < m->size[2]; j++) m->r[k][j] += m->r[k][number * m->size[2] + j];
    }
  }
}

static void matrix(Matrix* m, i64 threads) {
  const Call* c = m->c;
  const float step = *c->steps[m->row] + 1;
  void* at[COLUMNS];
  for (int k = 0; k < COLUMNS; k++) at[k] = c->columns[k][m->row];
  for (int stage = 0; stage < STAGES; stage++) {
    scalars_of[stage](c->hyper, step, m->size, at, m->slots, m->v, m->r);
    if (stage == PASSES) break;
    OMP(omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1))
    for (i64 number = 0; number < m->slabs; number++) slab(m, stage, number);
    gather_slabs(m, stage);
  }
  if (c->advance) *c->steps[m->row] = step;
}

extern "C" void run(const Call* c) {
  Matrix about;
  i64 few = 0, many = 0;  // bytes of scratch memory
  for (i64 row = 0; row < c->rows; row++) {
    const i64 bytes = lay_out(&about, c, row, nullptr);
    i64* most = about.slabs > ALONE ? &many : &few;
    if (bytes > *most) *most = bytes;
  }
  OMP(omp parallel num_threads(c->threads) if (c->threads > 1))
  {
    char* scratch = (char*)__builtin_malloc(few + 8);
    Matrix m;
    OMP(omp for schedule(dynamic, 1))
    for (i64 row = 0; row < c->rows; row++) {
      if (slabs_of(c, row) > ALONE) continue;
      lay_out(&m, c, row, scratch);
      matrix(&m, 1);
    }
    __builtin_free(scratch);
  }
  char* scratch = (char*)__builtin_malloc(many + 8);
  for (i64 row = 0; row < c->rows; row++) {
    if (slabs_of(c, row) <= ALONE) continue;
    lay_out(&about, c, row, scratch);
    matrix(&about, c->threads);
  }
  __builtin_free(scratch);
}
#else
static void scalars(const Call* c, int stage) {
  for (i64 row = 0; row < c->rows; row++) {
    double* s = c->slots + row * SLOTS;
    const float step = *c->steps[row] + 1;
    // as for the row before, if that is as old; its step may have been counted already
    if (ALIKE && row && step == *c->steps[row - 1] + (c->advance ? 0 : 1)) {
      __builtin_memcpy(s, s - SLOTS, SLOTS * sizeof(double));
    } else {
      void* at[COLUMNS];
      for (int k = ENTRY_COLUMNS; k < COLUMNS; k++) at[k] = c->columns[k][row];
      const i64 height = c->heights ? c->heights[row] : 0, width = c->widths ? c->widths[row] : 0;
      const i64 size[] = {c->sizes[row], height, width};
      scalars_of[stage](c->hyper, step, size, at, s, nullptr, nullptr);
    }
    if (c->advance && stage == STAGES - 1) *c->steps[row] = step;
  }
}

// Adds the blocks of each row, in their order, into its slots.
static void gather_sums(const Call* c, int pass) {
  for (int k = 0; k < SUMS; k++) {
    if (sum_passes[k] != pass || sum_kinds[k]) continue;
    for (i64 row = 0; row < c->rows; row++) c->slots[row * SLOTS + sum_slots[k]] = 0;
    for (i64 item = 0; item < c->items; item++)
      c->slots[c->item_rows[item] * SLOTS + sum_slots[k]] += c->sums[item * SUMS + k];
  }
}

#define SCRATCH ((ENTRY_COLUMNS + STACK * (VECTORS + SUMS)) * BLOCK * 8)

// Each pass begins where the one before it ended, the first where the norm did: what was read last is
// in the cache.
extern "C" void run(const Call* c) {
  for (int pass = 0; pass < PASSES; pass++) {
    scalars(c, pass);
    OMP(omp parallel num_threads(c->threads) if (c->threads > 1))
    {
      char* scratch = STACK || c->layouts ? (char*)__builtin_malloc(SCRATCH) : nullptr;
      OMP(omp for schedule(dynamic, chunk_of(c->items, c->threads)))
      for (i64 turn = 0; turn < c->items; turn++)
        block(c, pass, pass % 2 ? turn : c->items - 1 - turn, scratch);
      __builtin_free(scratch);
    }
    gather_sums(c, pass);
  }
  if (STAGES > PASSES) scalars(c, PASSES);
}
#endif

// Brings the objects behind Python tensors into the cache before Python visits them one by one: what
// checking a table costs is waiting for memory. Each address is that of a live object, of whose third
// and fourth word one points to the tensor; they are prefetched whatever they hold, never followed.
static void approach(i64 n, const char* const* objects) {
  for (i64 i = 0; i < n + 8; i++) {
    if (i < n) __builtin_prefetch(objects[i], 0, 3);
    if (i < 8) continue;
    for (int word = 2; word < 4; word++) {
      const char* inner = ((const char* const*)objects[i - 8])[word];
      for (int line = 0; line < 4; line++) __builtin_prefetch(inner + 64 * line, 0, 3);
    }
  }
}

// Whether an answer is the one that is known, or is now noted.
static inline bool agrees(i64 answer, i64** known, i64 learn) {
  if (learn) **known = answer;
  return *(*known)++ == answer;
}

// Whether Python's tensors are shaped as they were, and lie where they did unless `places` are wanted.
// `torch` says where in an object the tensor is, and has the functions that answer for it. See watch.py.
extern "C" i64 unchanged(i64 n, const char* const* objects, const i64* torch, i64* known, i64* places,
                         i64 learn) {
  typedef int (*Code)(const void*, int*);
  typedef int (*Number)(const void*, i64*);
  typedef int (*Numbers)(const void*, const i64**);
  const i64 inside = torch[0];
  for (i64 i = 0; i < n; i++) {
    if (i + 16 < n) __builtin_prefetch(objects[i + 16] + inside, 0, 3);
    if (i + 8 < n)
      for (int line = 0; line < 3; line++)
        __builtin_prefetch(*(const char* const*)(objects[i + 8] + inside) + 64 * line, 0, 3);
    const char* tensor = objects[i] + inside;
    for (int k = 1; k < 3; k++) {  // layout, dtype
      int code;
      if (((Code)torch[k])(tensor, &code) || !agrees(code, &known, learn)) return 0;
    }
    i64 number, dims;
    if (((Number)torch[3])(tensor, &number) || !agrees(number, &known, learn)) return 0;
    if (((Number)torch[4])(tensor, &dims) || !agrees(dims, &known, learn)) return 0;
    if (((Number)torch[5])(tensor, &number)) return 0;
    if (places ? !(places[i] = number) : !agrees(number, &known, learn)) return 0;
    const i64* strides;
    if (((Numbers)torch[6])(tensor, &strides)) return 0;
    for (i64 d = 0; d < dims; d++)
      if (!agrees(strides[d], &known, learn)) return 0;
  }
  return 1;
}

// A dict of Python's, or a list, and what is in it: keys and values in turn, or its members.
struct Kept {
  void* object;
  i64 dict, count;
  void* const* item;
};

// The rows of a table as Python holds them, and what answers for them. As in watch.py.
struct Rows {
  i64 rows, objects;            // objects: the parameters, then the tensors of their states in order
  void* const* states;          // a dict each
  const char* const* object;
  i64* known;                   // of the objects, and of the gradients: see `unchanged`
  const char** grad;            // room for as many
  i64 *grad_known, *grad_places;
  const i64* torch;
  i64 type_place;               // where in an object its type is, and that of an ordinary tensor
  const char* type;
  void *grad_name, *no;         // "grad"; False
  i64 questions;                // methods that answer no for a gradient as kernels read it
  void* const* question;
  i64 containers;               // that have to be as they were, too
  const Kept* container;
  int (*next)(void*, i64*, void**, void**);  // of Python's stable interface
  i64 (*size)(void*);
  void* (*at)(void*, i64);
  void* (*get)(const void*, void*);
  void* (*ask)(const void*, void*, ...);
  void (*drop)(const void*);
};

// Whether a gradient is an ordinary tensor whose memory says what its entries are.
static i64 ordinary(const Rows* r, const char* grad) {
  i64 fits = *(const char* const*)(grad + r->type_place) == r->type;
  for (i64 k = 0; fits && k < r->questions; k++) {
    void* answer = r->ask(grad, r->question[k], nullptr);
    fits = answer == r->no;
    if (answer) r->drop(answer);
  }
  return fits;
}

// Whether the same is in a container.
static i64 keeps(const Rows* r, const Kept* c) {
  i64 place = 0, n = 0;
  if (c->dict) {
    for (void *key, *value; r->next(c->object, &place, &key, &value); n += 2)
      if (n == c->count || c->item[n] != key || c->item[n + 1] != value) return 0;
    return n == c->count;
  }
  if (r->size(c->object) != c->count) return 0;
  while (n < c->count && r->at(c->object, n) == c->item[n]) n++;
  return n == c->count;
}

// Whether rows have the state they had, and gradients like those they had, whose places are noted.
// Called with Python's lock.
extern "C" i64 same(const Rows* r) {
  for (i64 k = 0; k < r->containers; k++)
    if (!keeps(r, r->container + k)) return 0;
  approach(r->rows, r->object);
  i64 found = r->rows, taken = 0, fits = 1;
  for (i64 row = 0; row < r->rows; row++) {
    i64 place = 0;
    void *key, *value;
    while (r->next(r->states[row], &place, &key, &value)) {
      if (found == r->objects || r->object[found] != value) return 0;
      found++;
    }
  }
  if (found < r->objects) return 0;
  while (fits && taken < r->rows) {
    const char* grad = (const char*)r->get(r->object[taken], r->grad_name);
    if (!grad) break;
    r->grad[taken++] = grad;
    fits = ordinary(r, grad);
  }
  fits = fits && taken == r->rows;
  fits = fits && unchanged(taken, r->grad, r->torch, r->grad_known, r->grad_places, 0);
  for (i64 row = 0; row < taken; row++) r->drop(r->grad[row]);
  return fits && unchanged(r->objects, r->object, r->torch, r->known, nullptr, 0);
}

static inline void add_squares(double* lanes, const STORED* x) {
  for (int k = 0; k < STRIP; k += 32)
    for (int j = 0; j < 32; j++) {
      const double v = load(x[k + j]);
      lanes[j] += v * v;
    }
}

// One stream of memory waits for each of its pages: four at once are read in two thirds of the time.
static double square_sum(i64 n, const STORED* x) {
  double lanes[32] = {0}, total = 0;
  const i64 quarter = n / (4 * STRIP) * STRIP;
  for (i64 start = 0; start < quarter; start += STRIP)
    for (i64 i = start; i < 4 * quarter; i += quarter) {
      ahead(x + i);
      add_squares(lanes, x + i);
    }
  i64 i = 4 * quarter;
  for (; i + STRIP <= n; i += STRIP) add_squares(lanes, x + i);
  for (; i < n; i++) lanes[i % 32] += (double)load(x[i]) * (double)load(x[i]);
  for (int j = 0; j < 32; j++) total += lanes[j];
  return total;
}

// Gradients whose squares are summed up, in items of NORM_BLOCK entries. A layout here has the strides
// of the gradient alone.
struct Norms {
  i64 rows, items;
  const i64 *sizes, *item_rows, *item_starts;
  const STORED* const* grads;
  const i64* const* layouts;
  double *parts, *squares;  // [item], and the result, [row]
  i64 threads;
};

// Each gradient's sum of squares; their sum is the result.
extern "C" double squares(const Norms* c) {
  OMP(omp parallel num_threads(c->threads) if (c->threads > 1))
  {
    STORED* scratch = c->layouts ? (STORED*)__builtin_malloc(NORM_BLOCK * sizeof(STORED)) : nullptr;
    OMP(omp for schedule(dynamic, chunk_of(c->items, 4 * c->threads)))
    for (i64 item = 0; item < c->items; item++) {
      const i64 row = c->item_rows[item], start = c->item_starts[item];
      const i64 n = length_of(item, c->items, c->sizes, c->item_rows, c->item_starts);
      const STORED* x = c->grads[row] + start;
      if (c->layouts && c->layouts[row]) {
        move((char*)scratch, (char*)c->grads[row], c->layouts[row], 0, start, n, sizeof(STORED), false);
        x = scratch;
      }
      c->parts[item] = square_sum(n, x);
    }
    __builtin_free(scratch);
  }
  double total = 0;
  for (i64 row = 0; row < c->rows; row++) c->squares[row] = 0;
  for (i64 item = 0; item < c->items; item++) c->squares[c->item_rows[item]] += c->parts[item];
  for (i64 row = 0; row < c->rows; row++) total += c->squares[row];
  return total;
}

// The whole step of a table: how its gradients are summed up, and how it runs. As in kernel.py.
struct Whole {
  double (*squares)(const Norms*);
  const Norms* norms;
  void (*run)(Call*);
  Call* call;
};

// Steps all tables with gradients of a norm of at most `limit` together; returns their norm. Does
// nothing else if that is not finite.
extern "C" double step(i64 tables, const Whole* table, double limit) {
  double total = 0;
  for (i64 k = 0; k < tables; k++) total += table[k].squares(table[k].norms);
  const double norm = root(total), scale = norm > limit ? limit / norm : 1;
  for (i64 k = 0; k < tables && norm - norm == 0; k++) {
    table[k].call->scale = scale;
    table[k].run(table[k].call);
  }
  return norm;
}

// Householder's reflections of the rows of a matrix, one after the other; see reflect.py. The text needs
// the beginning of runtime.h before it.

typedef T Lanes __attribute__((vector_size(64)));
#define WIDTH (i64)(64 / sizeof(T))
#define GROUP (4 * WIDTH)  // as many as additions are under way at a time
#define TOGETHER 8         // rows that are shared among threads

static inline Lanes get(const T* p) {
  Lanes x;
  __builtin_memcpy(&x, p, sizeof(x));
  return x;
}

// x -= factor v; returns the product of the new x and next, which is where the next reflection begins.
static T subtract(T* __restrict x, const T* __restrict v, T factor, const T* __restrict next, i64 n) {
  Lanes sums[4] = {};
  T sum = 0;
  i64 i = 0;
  for (; i + GROUP <= n; i += GROUP)
    for (i64 k = 0; k < 4; k++) {
      const i64 at = i + k * WIDTH;
      const Lanes less = get(x + at) - factor * get(v + at);
      __builtin_memcpy(x + at, &less, sizeof(less));
      sums[k] += less * get(next + at);
    }
  for (; i < n; i++) {
    x[i] -= factor * v[i];
    sum += x[i] * next[i];
  }
  const Lanes all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  for (i64 k = 0; k < WIDTH; k++) sum += all[k];
  return sum;
}

// Applies reflections first to last - 1 to a row, which they change from their own column on.
static void apply(T* x, const T* rows, i64 stride, i64 n, i64 first, i64 last, const T* inverses) {
  T product = 0;
  for (i64 k = first - 1; k < last; k++) {  // the first time for the product alone
    const i64 from = (k < first ? first : k) / GROUP * GROUP, next = k + 1 < last ? k + 1 : k;
    const T* v = rows + (k < first ? first : k) * stride;
    const T factor = k < first ? 0 : product / inverses[k];
    product = subtract(x + from, v + from, factor, rows + next * stride + from, n - from);
  }
}

// Makes x, which is number `own`, the vector of the reflection that leaves nothing behind that entry of it.
static void find(T* x, i64 own, i64 n, T* inverse) {
  double most = 0, squares = 0;
  OMP(omp simd reduction(max : most))
  for (i64 i = own; i < n; i++) most = magnitude(x[i]) > most ? magnitude(x[i]) : most;
  const double unit = 1 / most;  // so that squares neither vanish nor overflow
  OMP(omp simd reduction(+ : squares))
  for (i64 i = own + 1; i < n; i++) squares += (x[i] * unit) * (x[i] * unit);
  const bool idle = !(squares > 0);
  const double length = most * root(squares + (x[own] * unit) * (x[own] * unit));
  const double beta = x[own] > 0 ? -length : length, left = x[own] - beta, scale = 1 / left;
  for (i64 i = own + 1; i < n; i++) x[i] = idle ? 0 : (T)(x[i] * scale);
  for (i64 i = 0; i < own; i++) x[i] = 0;
  x[own] = !idle;
  *inverse = idle ? 1 : (T)(-beta / left);
}

extern "C" void reflect(T* rows, i64 stride, i64 count, i64 n, T* inverses, i64 threads) {
  OMP(omp parallel num_threads(threads) if (threads > 1))
  for (i64 first = 0; first < count; first += TOGETHER) {
    const i64 end = first + TOGETHER < count ? first + TOGETHER : count;
    OMP(omp for)
    for (i64 j = first; j < end; j++)
      if (first) apply(rows + j * stride, rows, stride, n, 0, first, inverses);
    OMP(omp single)
    for (i64 j = first; j < end; j++) {
      if (j > first) apply(rows + j * stride, rows, stride, n, first, j, inverses);
      find(rows + j * stride, j, n, inverses + j);
    }
  }
}

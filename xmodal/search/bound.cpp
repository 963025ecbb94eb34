// Bounds and estimates of attention scores from 8-bit vectors, one item after the other while it is in the cache.
//
// The same as xmodal/search/compressed.py and bound.py, which say why it is true; read those first. The words of the
// query lie side by side in the lanes of a vector, so that every sum over the vectors of an item is a sum of vectors.
// No function of a library is called but those of <cmath>; what fits no lane, or no case below, stays in Python.

#include "lanes.h"
#include <unistd.h>

namespace {

constexpr float EPSILON = 1e-8f;     // xmodal.heads.attention.EPSILON
constexpr float SLOPE = 0.1f;        // NEGATIVE_SLOPE
constexpr float WIDEST = 30.0f;      // xmodal.search.bound.WIDEST
constexpr float EXPONENTIAL = 2e-6f; // how far the logarithm of `exponential` may be from its argument

inline float from_half(uint16_t bits) {
    _Float16 value;
    std::memcpy(&value, &bits, 2);
    return (float)value;
}

inline void widen(const uint16_t *halves, int count, float *out) {
    typedef _Float16 Halves __attribute__((vector_size(2 * LANES), aligned(2)));
    int k = 0;
    for (; k + LANES <= count; k += LANES) *(Anywhere *)(out + k) = __builtin_convertvector(*(const Halves *)(halves + k), Floats);
    for (; k < count; k++) out[k] = from_half(halves[k]);
}

} // namespace

extern "C" {

struct Query {
    int32_t words, groups, lead, rest, next; // groups of LANES, of which one lane more than words is used
    const uint8_t *codes;              // two of (coordinate / 4, lane, 4): coarse steps and fine ones, plus 128
    const float *steps;                // (2, lane): of lead and rest
    const float *coarse_errors, *fine_errors, *norms, *real; // (lane,)
    const float *tails; // (2, lane): lengths of what follows lead, and of what follows the `next` coordinates after it
    float fine_step, spread, coarse_length, fine_length;     // in coarse steps; lengths of the errors
    int32_t clips, norm, aggregation, dinkelbach;            // norm 0, 1, 2; logsumexp, mean, sum, max
    float temperature, scale, enough;
};

struct Segment {
    const int8_t *lead, *rest;
    const uint16_t *steps, *errors; // float16
    const uint8_t *tails;           // (vector, 2): as the query's, in parts of 255 of the vector's length; null: unknown
    const uint16_t *gram;           // float16
    const uint8_t *reach;
    const float *norms; // null: all one
    const char *mapped; // where the file begins in memory
    int64_t file;       // to read from instead of memory, for items that lie far apart: -1 for none
};
}

namespace {

inline Ints add_products(Ints sums, const uint8_t *words, int32_t four) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, _mm512_loadu_si512(words), _mm512_set1_epi32(four));
#else
    for (int c = 0; c < 4; c++)
        for (int lane = 0; lane < LANES; lane++) sums[lane] += (int)words[4 * lane + c] * (int8_t)(four >> (8 * c));
    return sums;
#endif
}

// Part of the codes of some vectors: `size` of each, which begin `stride` after those of the one before.
struct Rows {
    const int8_t *codes;
    int count, size, stride;
};

// Sums of products of R rows with all words, without the 128 that is added to codes of words, added to `out` if they
// come after others. R and G are constants, so that the sums stay in registers.
template <int G, int R>
inline void multiply_rows(const uint8_t *words, int many, const int8_t *rows, int size, size_t stride, bool after, Ints *out) {
    Ints sums[R][G] = {};
    int32_t four;
    int k = 0;
    for (; k + 4 <= size; k += 4, words += 4 * LANES * G)
        for (int r = 0; r < R; r++) {
            std::memcpy(&four, rows + r * stride + k, 4);
            for (int g = 0; g < G; g++) sums[r][g] = add_products(sums[r][g], words + g * 4 * LANES, four);
        }
    if (k < size)
        for (int r = 0; r < R; r++) {
            four = 0;
            std::memcpy(&four, rows + r * stride + k, size - k);
            for (int g = 0; g < G; g++) sums[r][g] = add_products(sums[r][g], words + g * 4 * LANES, four);
        }
    for (int r = 0; r < R; r++) {
        int32_t added = sums[r][G - 1][many % LANES];
        for (int g = 0; g < G; g++) out[r * G + g] = sums[r][g] - added + (after ? out[r * G + g] : Ints{});
    }
}

template <int G> void multiply(const uint8_t *words, int many, const Rows &rows, bool after, Ints *out) {
    constexpr int R = G == 1 ? 12 : G == 2 ? 6 : 4;
    size_t stride = rows.stride;
    int row = 0;
    for (; row + R <= rows.count; row += R)
        multiply_rows<G, R>(words, many, rows.codes + row * stride, rows.size, stride, after, out + row * G);
    for (; row < rows.count; row++)
        multiply_rows<G, 1>(words, many, rows.codes + row * stride, rows.size, stride, after, out + row * G);
}

float aggregated(const Query &query, const Floats *cosines) {
    float total = 0, most = -1;
    for (int g = 0; g < query.groups; g++)
        for (int lane = 0; lane < LANES; lane++)
            if (query.real[g * LANES + lane] > 0 && cosines[g][lane] > most) most = cosines[g][lane];
    most = most < 1 ? most : 1;
    for (int g = 0; g < query.groups; g++) {
        Floats x = largest(least(cosines[g], all(1.0f)), all(-1.0f));
        total += sum((query.aggregation == 0 ? exponential((x - most) * query.scale) : x) * load(query.real + g * LANES));
    }
    switch (query.aggregation) {
    case 0: return most + std::log(total) / query.scale;
    case 1: return total / query.words;
    case 2: return total;
    default: return most;
    }
}

// Memory of a file, or what is read of it: to map a page takes longer than to read what is needed of it.
template <typename T> const T *fetch(const Segment &segment, const T *from, size_t count, char *&memory) {
    if (segment.file < 0 || !count) return from;
    char *into = memory;
    memory += (sizeof(T) * count + 63) / 64 * 64;
    ssize_t got = pread((int)segment.file, into, sizeof(T) * count, (const char *)from - segment.mapped);
    return got == (ssize_t)(sizeof(T) * count) ? (const T *)into : from;
}

// What is known of the vectors of one item. The largest arrays are fetched when they are needed: of most items they are
// not.
struct Item {
    const Segment &segment;
    int length;
    int64_t row, products;
    char *memory;
    float *steps, *errors, *norms, *cone, *tails; // steps: of lead and rest, side by side; tails: in two rows
    const int8_t *lead = nullptr, *rest = nullptr;
    const uint16_t *gram = nullptr;

    Rows leading(const Query &query) {
        if (!lead) lead = fetch(segment, segment.lead + row * query.lead, (size_t)length * query.lead, memory);
        return {lead, length, query.lead, query.lead};
    }

    Rows others(const Query &query, int begin, int end) {
        if (!rest) rest = fetch(segment, segment.rest + row * query.rest, (size_t)length * query.rest, memory);
        for (int j = 0; j < length; j++)
            for (int k = begin; k < end + 63; k += 64) __builtin_prefetch(rest + (size_t)j * query.rest + (k < end ? k : end - 1));
        return {rest + begin, length, end - begin, query.rest};
    }

    void fetch_gram() {
        if (!gram) gram = fetch(segment, segment.gram + products, (size_t)length * (length - 1) / 2, memory);
    }
};

template <int G> struct Work {
    Ints *lead, *rest;
    Floats *products, *entry, *weights, *low, *high, *reach;
    float *square;
};

template <int G> const uint8_t *words_of(const Query &query, bool fine, int rest) {
    int lead = (query.lead + 3) / 4, all = lead + (query.rest + 3) / 4;
    return query.codes + ((fine ? (size_t)all : 0) + (rest < 0 ? 0 : lead + rest / 4)) * 4 * LANES * G;
}

template <int G> void multiply_lead(const Query &query, Item &item, bool fine, Work<G> &work) {
    multiply<G>(words_of<G>(query, fine, -1), query.words, item.leading(query), false, work.lead);
}

// `begin` is a multiple of four.
template <int G> void multiply_rest(const Query &query, Item &item, bool fine, int begin, int end, Work<G> &work) {
    if (begin < end)
        multiply<G>(words_of<G>(query, fine, begin), query.words, item.others(query, begin, end), begin > 0, work.rest);
}

// Products from the sums that are there: those of the lead, and of the rest if any of it was multiplied.
template <int G> void take_products(const Query &query, const Item &item, bool fine, bool rest, Work<G> &work) {
    for (int j = 0; j < item.length; j++)
        for (int g = 0; g < G; g++) {
            Floats found = __builtin_convertvector(work.lead[j * G + g], Floats) * (load(query.steps + g * LANES) * item.steps[2 * j]);
            if (rest)
                found += __builtin_convertvector(work.rest[j * G + g], Floats) * (load(query.steps + (G + g) * LANES) * item.steps[2 * j + 1]);
            if (fine) work.products[j * G + g] += found * query.fine_step;
            else work.products[j * G + g] = found;
        }
}

// The most that a similarity can be whatever the weights are, times the length of the query, by products of the leading
// coordinates (`stage` 0), of the next ones too (1) or of all (2). What is not in a product is at most that of the
// lengths of what is left on either side.
template <int G>
void in_cone(const Query &query, const Item &item, const float *wrong, int stage, const Work<G> &work, Floats *most) {
    float narrow = 1;
    for (int g = 0; g < G; g++) most[g] = all(-INFINITY);
    for (int j = 0; j < item.length; j++) {
        float cone = item.cone[j] * item.norms[j], divided = cone > 0 ? 1 / cone : 0, near = item.norms[j] + item.errors[j];
        narrow = item.cone[j] < narrow ? item.cone[j] : narrow;
        for (int g = 0; g < G; g++) {
            Floats error = load(query.norms + g * LANES) * item.errors[j] + load(wrong + g * LANES) * near;
            if (stage < 2) error += load(query.tails + (stage * G + g) * LANES) * item.tails[stage * item.length + j];
            Floats found = cone > 0 ? (work.products[j * G + g] + error) * divided : all(INFINITY);
            most[g] = largest(most[g], found);
        }
    }
    for (int g = 0; g < G; g++) most[g] = most[g] < 0.0f ? most[g] * narrow : most[g];
}

// The weights as they seem, in sum one, and the least and the most that they may be.
template <int G>
void attend(const Query &query, const Item &item, const float *wrong, float wrong_length, Work<G> &work) {
    Floats most[G], total[G] = {};
    for (int g = 0; g < G; g++) most[g] = all(-INFINITY);
    for (int j = 0; j < item.length; j++) {
        Floats logits[G];
        float length = 0, near = item.norms[j] + item.errors[j];
        float column = query.spread * item.errors[j] + wrong_length * near;
        for (int g = 0; g < G; g++) {
            Floats x = work.products[j * G + g] * load(query.real + g * LANES);
            logits[g] = query.clips ? largest(x, x * SLOPE) : x;
            if (query.norm == 2) length += sum(logits[g] * logits[g]);
            if (query.norm == 1) length += sum(largest(logits[g], -logits[g]));
        }
        if (query.norm == 2) length = std::sqrt(length);
        if (query.norm == 1) column *= std::sqrt((float)query.words);
        float divided = 1 / (length + EPSILON), shortest = length - column > EPSILON ? 1 / (length - column) : 1 / EPSILON;
        for (int g = 0; g < G; g++) {
            Floats error = load(query.norms + g * LANES) * item.errors[j];
            error += load(wrong + g * LANES) * near;
            work.entry[j * G + g] = error;
            if (query.norm) {
                logits[g] *= divided;
                error = least(error * shortest + largest(logits[g], -logits[g]) * (column * shortest), all(2.0f));
            }
            work.weights[j * G + g] = logits[g] * query.temperature;
            most[g] = largest(most[g], work.weights[j * G + g]);
            work.high[j * G + g] = exponential(least(error * query.temperature + EXPONENTIAL, all(WIDEST)));
        }
    }
    for (int j = 0; j < item.length; j++)
        for (int g = 0; g < G; g++) {
            Floats weight = exponential(work.weights[j * G + g] - most[g]);
            total[g] += weight;
            work.weights[j * G + g] = weight;
        }
    for (int g = 0; g < G; g++) total[g] = 1.0f / total[g];
    for (int j = 0; j < item.length; j++)
        for (int g = 0; g < G; g++) {
            Floats weight = work.weights[j * G + g] * total[g], factor = work.high[j * G + g];
            work.weights[j * G + g] = weight;
            work.high[j * G + g] = weight * factor;
            work.low[j * G + g] = weight / factor;
        }
}

// Products of every vector with the weighted sum of all; returns how far an entry of the Gram matrix may be off.
template <int G> float gather(const Item &item, Work<G> &work, Floats *square) {
    int n = item.length;
    float largest_entry = 0, longest = 0;
    const uint16_t *packed = item.gram;
    for (int j = 0; j < n; j++) {
        work.square[j * n + j] = item.norms[j] * item.norms[j];
        longest = work.square[j * n + j] > longest ? work.square[j * n + j] : longest;
        for (int l = j + 1; l < n; l++) {
            float value = from_half(*packed++);
            work.square[j * n + l] = work.square[l * n + j] = value;
            largest_entry = std::fabs(value) > largest_entry ? std::fabs(value) : largest_entry;
        }
    }
    largest_entry = longest > largest_entry ? longest : largest_entry;
    for (int g = 0; g < G; g++) square[g] = all(0);
    for (int start = 0; start < n; start += 4) {
        int rows[4];
        for (int r = 0; r < 4; r++) rows[r] = start + r < n ? start + r : n - 1;
        Floats found[4][G] = {};
        for (int l = 0; l < n; l++)
            for (int r = 0; r < 4; r++)
                for (int g = 0; g < G; g++) found[r][g] += work.weights[l * G + g] * work.square[rows[r] * n + l];
        for (int r = 0; r < 4 && start + r < n; r++)
            for (int g = 0; g < G; g++) {
                work.reach[rows[r] * G + g] = found[r][g];
                square[g] += found[r][g] * work.weights[rows[r] * G + g];
            }
    }
    return largest_entry / 2048 + 4e-5f * longest;
}

// h, no more than the products of the vectors with the direction of their weighted sum.
template <int G> void narrow(const Item &item, float wrong, const Floats *square, Work<G> &work) {
    for (int g = 0; g < G; g++) {
        Floats over = 1.0f / roots(largest(square[g] + wrong, all(1e-12f)));
        Floats under = 1.0f / roots(largest(square[g] - wrong, all(1e-12f)));
        for (int j = 0; j < item.length; j++) {
            Floats gathered = work.reach[j * G + g] - wrong;
            Floats reach = least(gathered * over, gathered * under);
            reach = square[g] <= wrong + 1e-9f ? all(-INFINITY) : reach;
            work.reach[j * G + g] = largest(reach, all(-item.norms[j]));
        }
    }
}

// The greatest ratio within the box of weights; see `upper_bounds`.
template <int G> void steepest(const Query &query, const Item &item, float wrong, const Floats *square, Work<G> &work, Floats *best) {
    for (int g = 0; g < G; g++) {
        Floats over = {}, under = {}, wide = {}, apart = {};
        for (int j = 0; j < item.length; j++) {
            int at = j * G + g;
            Floats weight = work.weights[at];
            work.entry[at] += work.products[at];
            over += weight * work.entry[at];
            under += weight * work.reach[at];
            wide += work.high[at] * item.norms[j];
            apart += weight * item.norms[j];
        }
        Floats inside_over = under, ratio = over / largest(under, all(1e-6f));
        for (int step = 0; step < query.dinkelbach; step++) {
            over = under = Floats{};
            for (int j = 0; j < item.length; j++) {
                int at = j * G + g;
                Floats weight = work.entry[at] > ratio * work.reach[at] ? work.high[at] : work.low[at];
                over += weight * work.entry[at];
                under += weight * work.reach[at];
            }
            ratio = over / largest(under, all(1e-6f));
        }
        Floats rest = {}, together = {};
        for (int j = 0; j < item.length; j++) {
            int at = j * G + g;
            Floats left = work.entry[at] - ratio * work.reach[at];
            rest += (left > 0.0f ? work.high[at] : work.low[at]) * left;
            together += (work.reach[at] > 0.0f ? work.low[at] : work.high[at]) * work.reach[at];
        }
        ratio = together > 0.0f ? ratio + largest(rest, all(0)) / largest(together, all(1e-30f)) : all(INFINITY);
        Floats change = wide - apart, length = roots(largest(square[g] + wrong, all(0)));
        Floats inside = largest((inside_over - change) / (length + change), together / wide);
        inside = largest(least(inside, all(1)), all(0));
        best[g] = ratio < 0.0f ? ratio * inside : ratio;
    }
}

template <int G> float score(const Query &query, Floats *cosines) {
    for (int g = 0; g < G; g++) cosines[g] /= largest(load(query.norms + g * LANES), all(EPSILON));
    return aggregated(query, cosines);
}

// The bound of products that are as wrong as `wrong` says, in length `length` for all words together.
template <int G> float tight(const Query &query, Item &item, const float *wrong, float length, Work<G> &work) {
    Floats best[G], cone[G], square[G];
    item.fetch_gram();
    in_cone<G>(query, item, wrong, 2, work, cone);
    attend<G>(query, item, wrong, length, work);
    float gram_wrong = gather<G>(item, work, square);
    narrow<G>(item, gram_wrong, square, work);
    steepest<G>(query, item, gram_wrong, square, work, best);
    for (int g = 0; g < G; g++) best[g] = least(best[g], cone[g]);
    return score<G>(query, best);
}

template <int G> float estimate(const Query &query, Item &item, Work<G> &work) {
    Floats cosines[G] = {}, square[G];
    item.fetch_gram();
    attend<G>(query, item, query.coarse_errors, query.coarse_length, work);
    gather<G>(item, work, square);
    for (int g = 0; g < G; g++) {
        for (int j = 0; j < item.length; j++) cosines[g] += work.weights[j * G + g] * work.products[j * G + g];
        cosines[g] /= roots(largest(square[g], all(1e-12f)));
    }
    return score<G>(query, cosines);
}

template <int G> float wide(const Query &query, const Item &item, int stage, const Work<G> &work) {
    Floats cone[G];
    in_cone<G>(query, item, query.coarse_errors, stage, work, cone);
    return score<G>(query, cone);
}

// Bounds that see ever more of an item, until one excludes it: the leading coordinates, the next ones, all, the
// attention weights, and fine steps of the query.
template <int G> float bound(const Query &query, Item &item, Work<G> &work) {
    bool bounded = query.dinkelbach >= 0, excludes = bounded && query.enough > -INFINITY;
    int stages = !excludes || !item.segment.tails || !query.rest ? 0 : query.next ? 2 : 1, seen = 0;
    multiply_lead<G>(query, item, false, work);
    for (int stage = 0; stage < stages; stage++) {
        if (stage) multiply_rest<G>(query, item, false, 0, seen = query.next, work);
        take_products<G>(query, item, false, seen > 0, work);
        float most = wide<G>(query, item, stage, work);
        if (most < query.enough) return most;
    }
    multiply_rest<G>(query, item, false, seen, query.rest, work);
    take_products<G>(query, item, false, query.rest > 0, work);
    if (!bounded) return estimate<G>(query, item, work);
    if (excludes) {
        float most = wide<G>(query, item, 2, work);
        if (most < query.enough) return most;
        most = tight<G>(query, item, query.coarse_errors, query.coarse_length, work);
        if (most < query.enough) return most;
    }
    multiply_lead<G>(query, item, true, work);
    multiply_rest<G>(query, item, true, 0, query.rest, work);
    take_products<G>(query, item, true, query.rest > 0, work);
    return tight<G>(query, item, query.fine_errors, query.fine_length, work);
}

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

template <int G>
void bound_all(const Query &query, const Segment &segment, int length, int64_t count, const int64_t *rows,
               const int64_t *grams, char *memory, float *out) {
    auto take = [&](size_t bytes) { char *at = memory; memory += aligned(bytes); return at; };
    Work<G> work;
    size_t wide = sizeof(Floats) * G * length, narrow = sizeof(float) * length;
    work.lead = (Ints *)take(wide), work.rest = (Ints *)take(wide);
    work.products = (Floats *)take(wide), work.entry = (Floats *)take(wide), work.weights = (Floats *)take(wide);
    work.low = (Floats *)take(wide), work.high = (Floats *)take(wide), work.reach = (Floats *)take(wide);
    work.square = (float *)take(narrow * length);
    float *steps = (float *)take(2 * narrow), *errors = (float *)take(narrow), *norms = (float *)take(narrow);
    float *cone = (float *)take(narrow), *tails = (float *)take(2 * narrow);
    bool bounded = query.dinkelbach >= 0; // an estimate needs no errors
    for (int j = 0; j < length; j++) errors[j] = cone[j] = 0, norms[j] = 1;
    for (int64_t i = 0; i < count; i++) {
        int64_t row = rows[i];
        char *read = memory;
        if (segment.norms) std::memcpy(norms, segment.norms + row, narrow);
        widen(fetch(segment, segment.steps + 2 * row, 2 * (size_t)length, read), 2 * length, steps);
        if (bounded) {
            widen(fetch(segment, segment.errors + row, length, read), length, errors);
            const uint8_t *reach = fetch(segment, segment.reach + row, length, read);
            for (int j = 0; j < length; j++) cone[j] = reach[j] * (1 / 255.0f);
        }
        if (bounded && segment.tails) {
            const uint8_t *shares = fetch(segment, segment.tails + 2 * row, 2 * (size_t)length, read);
            for (int stage = 0; stage < 2; stage++)
                for (int j = 0; j < length; j++) tails[stage * length + j] = shares[2 * j + stage] * (1.00002f / 255) * norms[j];
        }
        Item item = {segment, length, row, grams[i], read, steps, errors, norms, cone, tails};
        out[i] = bound<G>(query, item, work);
    }
}

} // namespace

extern "C" {

int64_t scratch_bytes(int32_t groups, int32_t length, int32_t coordinates) {
    int64_t read = (int64_t)length * (coordinates + 9 + length) + 7 * 64, narrow = 4 * (int64_t)length;
    return read + 8 * (int64_t)aligned(sizeof(Floats) * groups * length) + aligned(narrow * length) + 3 * aligned(narrow) +
           2 * aligned(2 * narrow) + 64;
}

// Bounds of items of `length` vectors each, which begin at `rows` and whose products begin at `grams`.
void bounds(const Query *query, const Segment *segment, int32_t length, int64_t count, const int64_t *rows,
            const int64_t *grams, char *memory, float *out) {
    memory += (64 - (uintptr_t)memory % 64) % 64;
    switch (query->groups) {
    case 1: bound_all<1>(*query, *segment, length, count, rows, grams, memory, out); break;
    case 2: bound_all<2>(*query, *segment, length, count, rows, grams, memory, out); break;
    case 3: bound_all<3>(*query, *segment, length, count, rows, grams, memory, out); break;
    case 4: bound_all<4>(*query, *segment, length, count, rows, grams, memory, out); break;
    }
}
}

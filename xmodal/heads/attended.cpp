// Attended cosines and their gradient, a set of contexts against sixteen sets of queries after the other.
//
// The same as xmodal/heads/attended.py, which has the equations. A set's products, of all its places with all words of
// sixteen queries, stay in the cache from the first sum to the last; the queries lie side by side in the lanes.

#include "lanes.h"

namespace {

// What torch's smallest normal float32 is.
constexpr float TINY = 1.17549435e-38f;

inline Floats some(const float *from, int lanes) {
#if defined(__AVX512F__)
    return (Floats)_mm512_maskz_loadu_ps((__mmask16)((1u << lanes) - 1), from);
#else
    if (lanes == LANES) return load(from);
    Floats found = {};
    std::memcpy(&found, from, sizeof(float) * lanes);
    return found;
#endif
}

inline void put(float *to, Floats value, int lanes) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << lanes) - 1), (__m512)value);
#else
    if (lanes == LANES) *(Anywhere *)to = value;
    else std::memcpy(to, &value, sizeof(float) * lanes);
#endif
}

} // namespace

extern "C" {

struct Products {
    int32_t contexts, places, words, queries;
    int64_t context_stride, place_stride; // in numbers
    const int64_t *offsets; // of a place's products with each word; queries lie side by side
    const int32_t *counts;  // how many queries, the first ones, have each word; all have the first
    const float *values;
    const float *gram;   // (context, place, place)
    const uint8_t *mask; // (context, place)
    float slope, temperature, epsilon;
    int32_t focal; // 0: every place counts; else BFAN's focal functions: 1 equal, 2 prob
};
}

namespace {

struct Part {
    const Products &products;
    int context, first, lanes;

    // The products of a place and a word: zero for queries that lack it.
    Floats at(int place, int word) const {
        return some(products.values + context * products.context_stride + place * products.place_stride +
                        products.offsets[word] + first,
                    having(word));
    }
    int having(int word) const { return products.counts[word] - first < lanes ? products.counts[word] - first : lanes; }
    // Words that any of these queries has.
    int words() const {
        int found = products.words;
        while (found > 1 && products.counts[found - 1] <= first) found--;
        return found;
    }
    bool real(int place) const { return products.mask[context * products.places + place]; }
    Floats clipped(Floats value) const { return largest(value, value * products.slope); }
    // Of the products of a place by their length: none where all are zero, which have no direction.
    Floats scale(Floats length) const {
        Floats found = products.temperature / (length + products.epsilon);
        return length * length <= TINY ? Floats{} : found;
    }
};

// The weights of one word before the softmax's division, which a cosine does not need: of all places, or of those that
// the focal function keeps (xmodal.heads.bfan.focal_mask): all real ones where it keeps none.
inline void attend_word(const Part &part, int word, const Floats *scales, Floats *weights) {
    int places = part.products.places, focal = part.products.focal;
    for (int place = 0; place < places; place++) {
        Floats value = part.clipped(part.at(place, word));
        weights[place] = part.real(place) ? exponential(value * scales[place]) : Floats{};
    }
    if (!focal) return;
    Floats total = {}, average = {}, kept = {};
    for (int place = 0; place < places; place++)
        if (part.real(place)) {
            Floats confidence = focal == 1 ? all(1.0f) : roots(weights[place]);
            total += confidence;
            average += confidence * weights[place];
        }
    for (int place = 0; place < places; place++) kept = weights[place] * total > average ? all(1.0f) : kept;
    for (int place = 0; place < places; place++)
        weights[place] = kept > 0.0f ? (weights[place] * total > average ? weights[place] : Floats{}) : weights[place];
}

// Products of the Gram matrix with the weights of one word.
inline void spread_of(const float *gram, const Floats *weights, int places, Floats *spread) {
    int place = 0;
    for (; place + 4 <= places; place += 4) {
        const float *row = gram + place * places;
        Floats found[4] = {};
        for (int other = 0; other < places; other++)
            for (int r = 0; r < 4; r++) found[r] += weights[other] * row[r * places + other];
        for (int r = 0; r < 4; r++) spread[place + r] = found[r];
    }
    for (; place < places; place++) {
        Floats found = {};
        for (int other = 0; other < places; other++) found += weights[other] * gram[place * places + other];
        spread[place] = found;
    }
}

// The squared length of the weighted sum: the products of different places count twice, so that half will do.
inline Floats square_of(const float *gram, const Floats *weights, int places) {
    Floats square = {};
    int place = 0;
    for (; place + 4 <= places; place += 4) {
        const float *row = gram + place * places;
        Floats found[4] = {};
        for (int other = 0; other < place; other++)
            for (int r = 0; r < 4; r++) found[r] += weights[other] * row[r * places + other];
        for (int r = 0; r < 4; r++) found[r] += found[r];
        for (int other = place; other < place + 4; other++)
            for (int r = 0; r < 4; r++) found[r] += weights[other] * row[r * places + other];
        for (int r = 0; r < 4; r++) square += found[r] * weights[place + r];
    }
    for (; place < places; place++) {
        Floats found = {};
        for (int other = 0; other < place; other++) found += weights[other] * gram[place * places + other];
        square += (found + found + weights[place] * gram[place * places + place]) * weights[place];
    }
    return square;
}

// Adds the products of all weights with all scaled ones, word by word, to sums of four by four places on and below the
// diagonal.
inline void add_squares(const Floats *weights, const Floats *scaled, int places, int words, Floats *sums) {
    for (int place = 0; place < places; place += 4)
        for (int other = 0; other <= place; other += 4) {
            int rows[4], columns[4];
            for (int r = 0; r < 4; r++) {
                rows[r] = place + r < places ? place + r : places - 1;
                columns[r] = other + r < places ? other + r : places - 1;
            }
            Floats found[4][4];
            for (int r = 0; r < 4; r++)
                for (int k = 0; k < 4; k++) found[r][k] = sums[4 * r + k];
            for (int word = 0; word < words; word++) {
                const Floats *weight = weights + (int64_t)word * places, *scale = scaled + (int64_t)word * places;
                Floats along[4];
                for (int k = 0; k < 4; k++) along[k] = weight[columns[k]];
                for (int r = 0; r < 4; r++) {
                    Floats down = scale[rows[r]];
                    for (int k = 0; k < 4; k++) found[r][k] += down * along[k];
                }
            }
            for (int r = 0; r < 4; r++)
                for (int k = 0; k < 4; k++) sums[4 * r + k] = found[r][k];
            sums += 16;
        }
}

// The symmetric matrix that these are sums of.
inline void gather_squares(const Floats *sums, int places, float *gram) {
    for (int place = 0; place < places; place += 4)
        for (int other = 0; other <= place; other += 4, sums += 16)
            for (int r = 0; r < 4 && place + r < places; r++)
                for (int k = 0; k < 4 && other + k < places; k++) {
                    float found = sum(sums[4 * r + k]);
                    gram[(place + r) * places + other + k] = gram[(other + k) * places + place + r] = found;
                }
}

} // namespace

extern "C" {

int64_t attended_scratch(int32_t places, int32_t words) {
    int64_t blocks = (places + 3) / 4;
    return 64 + (int64_t)sizeof(Floats) * (places * (3 + 3 * (int64_t)words) + 8 * blocks * (blocks + 1));
}

// Cosines of contexts begin to end, `(context, word, query)`, for the lengths of the queries, which are the same for all
// contexts if the stride is zero. Unless they are null, what the gradient takes: sums over the places, of the weights, of
// weights times products, and the square of the weighted context's length, these two as if the weights had the sum one;
// and the lengths of the products of each place, `(context, place, query)`.
void attend(const Products *given, int32_t begin, int32_t end, char *memory, const float *norms, int64_t norm_stride,
            float *cosines, float *totals, float *dots, float *squares, float *lengths) {
    const Products &products = *given;
    int places = products.places, words = products.words, queries = products.queries;
    Floats *scales = (Floats *)(memory + (64 - (uintptr_t)memory % 64) % 64), *weights = scales + places;
    for (int context = begin; context < end; context++) {
        const float *gram = products.gram + (int64_t)context * places * places;
        for (int first = 0; first < queries; first += LANES) {
            Part part = {products, context, first, queries - first < LANES ? queries - first : LANES};
            int has = part.words();
            for (int place = 0; place < places; place++) {
                Floats square = {};
                for (int word = 0; word < has; word++) {
                    Floats value = part.clipped(part.at(place, word));
                    square += value * value;
                }
                Floats length = roots(largest(all(TINY), square));
                scales[place] = part.scale(length);
                if (lengths) put(lengths + ((int64_t)context * places + place) * queries + first, length, part.lanes);
            }
            for (int word = has; word < words; word++) {
                int64_t at = ((int64_t)context * words + word) * queries + first;
                put(cosines + at, Floats{}, part.lanes);
                if (!totals) continue;
                put(totals + at, all(1.0f), part.lanes);
                put(dots + at, Floats{}, part.lanes);
                put(squares + at, Floats{}, part.lanes);
            }
            for (int word = 0; word < has; word++) {
                Floats total = {}, dot = {};
                attend_word(part, word, scales, weights);
                for (int place = 0; place < places; place++) {
                    total += weights[place];
                    dot += weights[place] * part.at(place, word);
                }
                Floats inverse = 1.0f / total, square = square_of(gram, weights, places);
                int64_t at = ((int64_t)context * words + word) * queries + first;
                dot *= inverse;
                square *= inverse * inverse;
                Floats norm = some(norms + context * norm_stride + (int64_t)word * queries + first, part.lanes);
                Floats both = norm * roots(largest(all(TINY), square)), found = dot / largest(all(products.epsilon), both);
                put(cosines + at, both < products.epsilon * products.epsilon ? Floats{} : found, part.lanes);
                if (!totals) continue;
                put(totals + at, total, part.lanes);
                put(dots + at, dot, part.lanes);
                put(squares + at, square, part.lanes);
            }
        }
    }
}

// The gradient of the products, `(context, place, column)` without gaps, and unless it is null that of the Gram matrix,
// from that of each cosine by the dot product and by the square, divided by the sum of the weights and its square, and their
// mean divided by the sum: `(context, word, query)`.
void attend_backwards(const Products *given, int32_t begin, int32_t end, char *memory, const float *lengths,
                      const float *by_dot, const float *by_square, const float *mean, float *change, float *for_gram) {
    const Products &products = *given;
    int places = products.places, words = products.words, queries = products.queries;
    Floats *scales = (Floats *)(memory + (64 - (uintptr_t)memory % 64) % 64), *spread = scales + places;
    Floats *pull = spread + places, *kept = pull + places, *raw = kept + places * words, *scaled = raw + places * words;
    Floats *sums = scaled + places * words;
    int blocks = (places + 3) / 4;
    int64_t columns = 0;
    for (int word = 0; word < words; word++) columns += products.counts[word];
    for (int context = begin; context < end; context++) {
        const float *gram = products.gram + (int64_t)context * places * places;
        for (int k = 0; k < 8 * blocks * (blocks + 1); k++) sums[k] = Floats{};
        for (int first = 0; first < queries; first += LANES) {
            Part part = {products, context, first, queries - first < LANES ? queries - first : LANES};
            const float *length = lengths + (int64_t)context * places * queries + first;
            int has = part.words();
            for (int place = 0; place < places; place++) {
                scales[place] = part.scale(some(length + (int64_t)place * queries, part.lanes));
                pull[place] = Floats{};
            }
            for (int word = 0; word < has; word++) {
                Floats *weight = kept + (int64_t)word * places, *slope = raw + (int64_t)word * places;
                attend_word(part, word, scales, weight);
                spread_of(gram, weight, places, spread);
                int64_t at = ((int64_t)context * words + word) * queries + first;
                Floats dot = some(by_dot + at, part.lanes), square = some(by_square + at, part.lanes);
                Floats middle = some(mean + at, part.lanes), twice = square + square;
                for (int place = 0; place < places; place++) {
                    Floats value = part.at(place, word);
                    slope[place] = (value * dot + spread[place] * twice - middle) * weight[place];
                    pull[place] += slope[place] * part.clipped(value);
                    scaled[(int64_t)word * places + place] = weight[place] * square;
                }
            }
            if (for_gram) add_squares(kept, scaled, places, has, sums);
            for (int place = 0; place < places; place++) {
                Floats size = some(length + (int64_t)place * queries, part.lanes);
                Floats found = pull[place] * scales[place] / ((size + products.epsilon) * size);
                pull[place] = size * size <= TINY ? Floats{} : found;
            }
            int64_t column = first;
            for (int word = 0; word < has; column += products.counts[word++]) {
                int64_t at = ((int64_t)context * words + word) * queries + first;
                Floats dot = some(by_dot + at, part.lanes);
                for (int place = 0; place < places; place++) {
                    Floats value = part.at(place, word);
                    Floats found = raw[(int64_t)word * places + place] * scales[place] - part.clipped(value) * pull[place];
                    found = value > 0.0f ? found : found * products.slope;
                    found += kept[(int64_t)word * places + place] * dot;
                    put(change + ((int64_t)context * places + place) * columns + column, found, part.having(word));
                }
            }
        }
        if (for_gram) gather_squares(sums, places, for_gram + (int64_t)context * places * places);
    }
}
}

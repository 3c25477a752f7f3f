// Walks through the Huffman codes of a sequential JPEG without computing pixels, and returns what is wrong with them.
// Compiled and called by damaged_jpegs.py.
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

enum Verdict { whole, not_judged, bad_code, past_block, too_few, left_over, bad_fill, bad_restart, too_bright };

struct Table {
    bool defined = false;
    uint16_t fast[512];  // by the next 9 bits: length << 8 | symbol, 0 where the code is longer
    int32_t limit[18];   // by length: first code of 16 bits that is longer
    int32_t offset[17];
    uint8_t symbols[256];

    bool build(const uint8_t* counts, const uint8_t* values, int total) {
        std::memcpy(symbols, values, total);
        std::memset(fast, 0, sizeof fast);
        int32_t code = 0, index = 0;
        for (int length = 1; length <= 16; ++length, code <<= 1) {
            offset[length] = index - code;
            for (int i = 0; i < counts[length - 1]; ++i, ++code, ++index) {
                if (code >> length) return false;
                if (length <= 9)
                    for (int rest = 0; rest < 1 << (9 - length); ++rest)
                        fast[(code << (9 - length)) + rest] = uint16_t(length << 8 | symbols[index]);
            }
            limit[length] = code << (16 - length);
        }
        return defined = true;
    }
};

struct Bits {
    const uint8_t *at, *end;
    uint64_t held = 0;
    int count = 0, missing = 0;  // bits held; of them, zeros that stand for what is missing

    void fill() {
        while (count <= 48) {
            uint64_t byte = 0;
            if (at < end && (*at != 0xFF || (at + 1 < end && at[1] == 0))) {
                byte = *at;
                at += byte == 0xFF ? 2 : 1;
            } else {
                missing += 8;
            }
            held = held << 8 | byte;
            count += 8;
        }
    }
    int peek(int n) const { return int(held >> (count - n)) & ((1 << n) - 1); }
    int symbol(const Table& table) {
        if (count < 32) fill();
        if (const int entry = table.fast[peek(9)]) {
            count -= entry >> 8;
            return entry & 255;
        }
        const int next = peek(16);
        for (int length = 1; length <= 16; ++length)
            if (next < table.limit[length]) {
                count -= length;
                return table.symbols[(next >> (16 - length)) + table.offset[length] & 255];
            }
        return -1;
    }
    int value(int n) {
        if (n == 0) return 0;
        count -= n;
        const int bits = int(held >> count) & ((1 << n) - 1);
        return bits >> (n - 1) ? bits : bits - (1 << n) + 1;
    }
    Verdict finish(bool padded) {  // after the last block before a marker
        const int rest = count - missing;
        if (rest < 0) return too_few;
        if (padded) {
            while (at + 1 < end && (*at != 0xFF || at[1] == 0)) ++at;
        } else {
            if (const Verdict verdict = filled(rest)) return verdict;
        }
        while (at + 1 < end && *at == 0xFF && at[1] == 0xFF) ++at;
        held = 0, count = missing = 0;
        return whole;
    }
    Verdict filled(int rest) const {
        if (rest >= 8 || (at < end && (*at != 0xFF || at + 1 >= end || at[1] == 0))) return left_over;
        if (rest && (held >> missing & ((1u << rest) - 1)) != (1u << rest) - 1) return bad_fill;
        return whole;
    }
};

struct Channel {
    int id = 0, across = 1, down = 1, quantizer = 0, dc = 0, ac = 0, last = 0;
};

struct Scanner {
    Table tables[2][4];
    int steps[4][64] = {};
    Channel channels[4];
    int width = 0, height = 0, count = 0, interval = 0;
    bool ranges = false, padded = false;  // check the size of coefficients; allow more data before a marker

    Verdict block(Bits& bits, Channel& channel) {
        const int* step = steps[channel.quantizer];
        int size = bits.symbol(tables[0][channel.dc]);
        if (size < 0 || size > 11) return bad_code;
        channel.last += bits.value(size);
        // An orthonormal transform keeps the sum of squares: 64 pixels of at most 128. Rounding adds half a step each.
        const int64_t dc = int64_t(channel.last) * step[0];
        if (ranges && (dc > 1024 + step[0] || dc < -1024 - step[0])) return too_bright;
        for (int k = 1; k < 64; ++k) {
            const int symbol = bits.symbol(tables[1][channel.ac]);
            if (symbol < 0) return bad_code;
            size = symbol & 15;
            if (size == 0) {
                if (symbol != 0xF0) {
                    if (symbol) return bad_code;  // a run of blocks, in progressive pictures alone
                    break;
                }
                k += 15;
                if (k > 63) return past_block;
                continue;
            }
            if (size > 10) return bad_code;
            k += symbol >> 4;
            if (k > 63) return past_block;
            const int64_t ac = int64_t(bits.value(size)) * step[k];
            if (ranges && (ac > 1024 + step[k] || ac < -1024 - step[k])) return too_bright;
        }
        return bits.count < bits.missing ? too_few : whole;
    }

    Verdict scan(const uint8_t*& at, const uint8_t* end, Channel* const* members, int n) {
        int across = 1, down = 1;
        for (int i = 0; i < count; ++i) {
            if (channels[i].across > across) across = channels[i].across;
            if (channels[i].down > down) down = channels[i].down;
        }
        int columns = (width + 8 * across - 1) / (8 * across), rows = (height + 8 * down - 1) / (8 * down);
        if (n == 1) {  // blocks of the channel's own size
            columns = ((width * members[0]->across + across - 1) / across + 7) / 8;
            rows = ((height * members[0]->down + down - 1) / down + 7) / 8;
        }
        Bits bits{at, end};
        for (int i = 0; i < n; ++i) members[i]->last = 0;
        for (int64_t unit = 0, restart = 0, units = int64_t(columns) * rows; unit < units; ++unit) {
            if (interval && unit && unit % interval == 0) {
                if (const Verdict verdict = bits.finish(padded)) return verdict;
                if (bits.at + 1 >= end || bits.at[1] != 0xD0 + restart++ % 8) return bad_restart;
                bits.at += 2;
                for (int i = 0; i < n; ++i) members[i]->last = 0;
            }
            for (int i = 0; i < n; ++i)
                for (int b = n == 1 ? 1 : members[i]->across * members[i]->down; b > 0; --b)
                    if (const Verdict verdict = block(bits, *members[i])) return verdict;
        }
        const Verdict verdict = bits.finish(padded);
        at = bits.at;
        return verdict;
    }

    Verdict file(const uint8_t* data, size_t size) {
        const uint8_t *at = data + 2, *end = data + size;
        if (size < 4) return too_few;
        while (at + 1 < end) {
            if (*at != 0xFF) return left_over;
            const int marker = at[1];
            if (marker == 0xFF) { ++at; continue; }
            if (marker == 0xD9) return count ? whole : too_few;
            if (at + 4 > end) return too_few;
            const int length = at[2] << 8 | at[3];
            const uint8_t *body = at + 4, *next = at + 2 + length;
            if (length < 2 || next > end) return too_few;
            const int bytes = length - 2;
            at = next;
            if (marker == 0xC4) {
                while (body + 17 <= next) {
                    int total = 0;
                    for (int i = 1; i <= 16; ++i) total += body[i];
                    if (total > 256 || body + 17 + total > next || (*body & 15) > 3 || *body >> 4 > 1) return bad_code;
                    if (!tables[*body >> 4][*body & 15].build(body + 1, body + 17, total)) return bad_code;
                    body += 17 + total;
                }
            } else if (marker == 0xDB) {
                static const uint8_t wide[2] = {1, 2};
                while (body < next && *body >> 4 < 2 && body + 1 + 64 * wide[*body >> 4] <= next) {
                    const int bytes_each = wide[*body >> 4], to = *body++ & 3;
                    for (int i = 0; i < 64; ++i, body += bytes_each)
                        steps[to][i] = bytes_each == 1 ? *body : body[0] << 8 | body[1];
                }
            } else if (marker == 0xC0 || marker == 0xC1) {
                if (bytes < 6 || body[0] != 8 || body[5] < 1 || body[5] > 4 || bytes < 6 + 3 * body[5]) return not_judged;
                height = body[1] << 8 | body[2], width = body[3] << 8 | body[4], count = body[5];
                for (int i = 0; i < count; ++i) {
                    channels[i] = Channel{body[6 + 3 * i], body[7 + 3 * i] >> 4, body[7 + 3 * i] & 15, body[8 + 3 * i] & 3};
                    if (!channels[i].across || !channels[i].down) return not_judged;
                }
                if (!width || !height) return not_judged;
            } else if (marker > 0xC0 && marker < 0xD0) {
                return not_judged;  // progressive, arithmetic or lossless
            } else if (marker == 0xDD && bytes >= 2) {
                interval = body[0] << 8 | body[1];
            } else if (marker == 0xDA) {
                Channel* members[4];
                const int n = bytes ? body[0] : 0;
                if (!count || n < 1 || n > 4 || bytes < 4 + 2 * n) return not_judged;
                for (int i = 0; i < n; ++i) {
                    members[i] = nullptr;
                    for (int j = 0; j < count; ++j)
                        if (channels[j].id == body[1 + 2 * i]) members[i] = channels + j;
                    if (!members[i]) return bad_code;
                    members[i]->dc = body[2 + 2 * i] >> 4 & 3, members[i]->ac = body[2 + 2 * i] & 3;
                    if (!tables[0][members[i]->dc].defined || !tables[1][members[i]->ac].defined) return not_judged;
                }
                if (const Verdict verdict = scan(at, end, members, n)) return verdict;
            }
        }
        return too_few;
    }
};

}  // namespace

extern "C" int jpeg_scan(const uint8_t* data, size_t size, int ranges, int padded) {
    Scanner scanner;
    scanner.ranges = ranges != 0;
    scanner.padded = padded != 0;
    return scanner.file(data, size);
}

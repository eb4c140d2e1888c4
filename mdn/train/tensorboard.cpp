#include "mdn/train/tensorboard.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <filesystem>

namespace mdn::train {
namespace {

std::string little_endian(uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) {
    out.push_back(static_cast<char>(value >> (8 * i) & 0xff));
  }
  return out;
}

// Protobuf's wire format: a field is varint(number << 3 | type) and then its value.
enum WireType : uint64_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) {
    out.push_back(static_cast<char>(value | 0x80));
  }
  out.push_back(static_cast<char>(value));
  return out;
}

std::string tag(uint64_t number, WireType type) {
  return varint(number << 3 | type);
}

std::string bytes_field(uint64_t number, std::string_view value) {
  return tag(number, kBytes) + varint(value.size()) + std::string(value);
}

// Event { double wall_time = 1; int64 step = 2; ... }
std::string event_head(int64_t step) {
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  return tag(1, kFixed64) + little_endian(std::bit_cast<uint64_t>(now), 8) + tag(2, kVarint) +
         varint(static_cast<uint64_t>(step));
}

std::filesystem::path new_event_file(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  const int64_t seconds = std::chrono::duration_cast<std::chrono::seconds>(
                              std::chrono::system_clock::now().time_since_epoch())
                              .count();
  std::string name = fmt::format("events.out.tfevents.{}.mdn.{}", seconds, ::getpid());
  const std::string first = name;
  for (int n = 1; std::filesystem::exists(folder / name); ++n) {
    name = fmt::format("{}.{}", first, n);
  }
  return folder / name;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t c = i;
      for (int bit = 0; bit < 8; ++bit) {
        c = c >> 1 ^ (c & 1 ? 0x82f63b78u : 0u);
      }
      t[i] = c;
    }
    return t;
  }();
  uint32_t c = ~0u;
  for (const char byte : bytes) {
    c = table[(c ^ static_cast<uint8_t>(byte)) & 0xff] ^ c >> 8;
  }
  return ~c;
}

EventWriter::EventWriter(const std::filesystem::path& folder, int64_t first_step)
    : file_(new_event_file(folder)) {
  // Event.file_version = 3
  write(event_head(0) + bytes_field(3, "brain.Event:2"));
  if (first_step > 0) {
    // Event.session_log = 7, SessionLog.status = 1, START = 1: this step and later ones start anew
    write(event_head(first_step) + bytes_field(7, tag(1, kVarint) + varint(1)));
  }
}

void EventWriter::add(int64_t step, const std::vector<std::pair<std::string, double>>& scalars) {
  // Event.summary = 5, Summary.value = 1, Value { string tag = 1; float simple_value = 2; }
  std::string summary;
  for (const auto& [name, value] : scalars) {
    summary +=
        bytes_field(1, bytes_field(1, name) + tag(2, kFixed32) +
                           little_endian(std::bit_cast<uint32_t>(static_cast<float>(value)), 4));
  }
  write(event_head(step) + bytes_field(5, summary));
}

void EventWriter::write(const std::string& event) {
  // A record: u64 length, masked CRC of the length, bytes, masked CRC of the bytes.
  const auto masked = [](std::string_view bytes) {
    return little_endian(std::rotr(crc32c(bytes), 15) + 0xa282ead8u, 4);
  };
  const std::string length = little_endian(event.size(), 8);
  file_.append(length + masked(length) + event + masked(event));
}

}  // namespace mdn::train

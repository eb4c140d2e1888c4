#include "mdn/io/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "mdn/io/json.h"
#include "tests/io/scratch.h"

namespace mdn {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string file_bytes(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  bytes += header;
  for (size_t i = 0; i < data_bytes; ++i) {
    bytes += static_cast<char>(i);
  }
  return bytes;
}

std::string parse_error(const std::string& bytes) {
  return error_of([&] { parse_safetensors(as_bytes(bytes), "m.safetensors", nullptr); });
}

std::string header_error(const std::string& header, size_t data_bytes) {
  return parse_error(file_bytes(header, data_bytes));
}

TEST(Safetensors, ReadsEveryDType) {
  const char* names[] = {"F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E4M3", "I64", "I32",
                         "I16", "I8",  "U64", "U32",  "U16",     "U8",      "BOOL"};
  for (const char* name : names) {
    const FileDType dtype = file_dtype_from_name(name, "test");
    EXPECT_STREQ(name_of(dtype), name);
    const size_t bytes = 6 * size_of(dtype);
    const std::string file = file_bytes(
        fmt::format(R"({{"x":{{"dtype":"{}","shape":[2,3],"data_offsets":[0,{}]}}}})", name, bytes),
        bytes);
    const auto tensors = parse_safetensors(as_bytes(file), "f", nullptr);
    ASSERT_EQ(tensors.size(), 1u);
    EXPECT_EQ(tensors[0].dtype, dtype);
    EXPECT_EQ(tensors[0].data.size(), bytes);
  }
}

TEST(Safetensors, SortsByPositionAndReadsMetadata) {
  const std::string file =
      file_bytes(R"({"__metadata__":{"format":"pt"},)"
                 R"("a":{"dtype":"U8","shape":[3],"data_offsets":[5,8]},)"
                 R"("b":{"dtype":"U8","shape":[],"data_offsets":[4,5]},)"
                 R"("empty":{"dtype":"F32","shape":[7,0],"data_offsets":[4,4]},)"
                 R"("c":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}   )",
                 8);
  Metadata metadata;
  const auto tensors = parse_safetensors(as_bytes(file), "f", &metadata);
  ASSERT_EQ(tensors.size(), 4u);
  EXPECT_EQ(tensors[0].name, "c");
  EXPECT_EQ(tensors[1].name, "empty");
  EXPECT_EQ(tensors[2].name, "b");
  EXPECT_EQ(tensors[3].name, "a");
  EXPECT_EQ(as_text(tensors[3].data), "\x05\x06\x07");
  EXPECT_EQ(element_count(tensors[2]), 1);
  EXPECT_EQ(element_count(tensors[1]), 0);
  EXPECT_EQ(metadata.at("format"), "pt");
  EXPECT_TRUE(parse_safetensors(as_bytes(file_bytes("{}", 0)), "f", nullptr).empty());
}

TEST(Safetensors, RefusesBrokenHeaders) {
  EXPECT_THAT(parse_error(""), HasSubstr("has 0 bytes"));
  EXPECT_THAT(parse_error("1234567"), HasSubstr("has 7 bytes"));
  EXPECT_THAT(parse_error(std::string("\x10\0\0\0\0\0\0\0{}", 10)),
              HasSubstr("given as 16, but only 2 bytes follow"));
  EXPECT_THAT(parse_error(std::string(8, '\xff') + "{}"), HasSubstr("at most 100000000"));
  EXPECT_THAT(header_error("", 0), HasSubstr("must begin with '{'"));
  EXPECT_THAT(header_error(" {}", 0), HasSubstr("must begin with '{'"));
  EXPECT_THAT(header_error("{\"a\":", 0), HasSubstr("m.safetensors (header):1:6: not valid JSON"));
  EXPECT_THAT(header_error("{}x", 0), HasSubstr("not valid JSON"));
  EXPECT_THAT(header_error(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                           R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                           2),
              HasSubstr("key \"a\" stands twice"));
  EXPECT_THAT(header_error(R"({"__metadata__":{"a":1}})", 0),
              HasSubstr("__metadata__: \"a\" is 1; it must be a string"));
  EXPECT_EQ(error_of([] {
              Metadata metadata;
              parse_safetensors(as_bytes(file_bytes(R"({"__metadata__":3})", 0)), "f", &metadata);
            }),
            "f: __metadata__: is 3; a JSON object is needed");
}

TEST(Safetensors, RefusesBrokenEntries) {
  const auto entry = [](const std::string& fields, size_t data_bytes) {
    return header_error(R"({"x":{)" + fields + "}}", data_bytes);
  };
  EXPECT_THAT(header_error(R"({"x":3})", 0), HasSubstr("tensor \"x\": is 3"));
  EXPECT_THAT(entry(R"("shape":[1],"data_offsets":[0,1])", 1), HasSubstr("\"dtype\" is missing"));
  EXPECT_THAT(entry(R"("dtype":"U8","data_offsets":[0,1])", 1), HasSubstr("\"shape\" is missing"));
  EXPECT_THAT(entry(R"("dtype":"U8","shape":[1])", 1), HasSubstr("\"data_offsets\" is missing"));
  EXPECT_THAT(entry(R"("dtype":"U8","shape":[1],"data_offsets":[0,1],"more":1)", 1),
              HasSubstr("unknown key \"more\""));
  EXPECT_THAT(entry(R"("dtype":"F33","shape":[1],"data_offsets":[0,1])", 1),
              HasSubstr("dtype \"F33\" is not supported; supported are F64, F32"));
  EXPECT_THAT(entry(R"("dtype":"U8","shape":[-1],"data_offsets":[0,1])", 1),
              HasSubstr("\"shape\" holds -1; each entry must be an integer >= 0"));
  EXPECT_THAT(entry(R"("dtype":"U8","shape":[1.0],"data_offsets":[0,1])", 1),
              HasSubstr("\"shape\" holds 1.0"));
  EXPECT_THAT(entry(R"("dtype":"U8","shape":[1],"data_offsets":[0])", 1),
              HasSubstr("has 1 entries"));
  EXPECT_THAT(entry(R"("dtype":"U8","shape":[1],"data_offsets":[0,1,2])", 1),
              HasSubstr("has 3 entries"));
  EXPECT_THAT(entry(R"("dtype":"U8","shape":[1],"data_offsets":[1,0])", 1),
              HasSubstr("must not end before it begins"));
  EXPECT_THAT(entry(R"("dtype":"U8","shape":[2],"data_offsets":[0,2])", 1),
              HasSubstr("has only 1 bytes of data (truncated?)"));
  EXPECT_THAT(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])", 4),
              HasSubstr("F32 [2] takes 8 bytes, but \"data_offsets\" spans 4"));
  EXPECT_THAT(
      entry(R"("dtype":"U8","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,0])", 0),
      HasSubstr("more than 2^63 - 1 elements"));
  EXPECT_THAT(entry(R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0])", 0),
              HasSubstr("more than 2^63 - 1 bytes"));
  EXPECT_THAT(entry(R"("dtype":"U8","shape":[1],"data_offsets":[0,18446744073709551616])", 1),
              HasSubstr("data_offsets"));
}

TEST(Safetensors, RefusesHolesOverlapsAndRests) {
  const auto two = [](const char* a, const char* b, size_t bytes) {
    return header_error(fmt::format(R"({{"a":{{"dtype":"U8",{}}},"b":{{"dtype":"U8",{}}}}})", a, b),
                        bytes);
  };
  EXPECT_THAT(two(R"("shape":[2],"data_offsets":[0,2])", R"("shape":[2],"data_offsets":[1,3])", 3),
              HasSubstr("tensor \"b\" begins at byte 1, inside the tensor before it"));
  EXPECT_THAT(two(R"("shape":[2],"data_offsets":[0,2])", R"("shape":[2],"data_offsets":[0,2])", 2),
              HasSubstr("inside the tensor before it"));
  EXPECT_THAT(two(R"("shape":[2],"data_offsets":[0,2])", R"("shape":[1],"data_offsets":[3,4])", 4),
              HasSubstr("bytes 2 to 3 of the data, before tensor \"b\", belong to no tensor"));
  EXPECT_THAT(two(R"("shape":[1],"data_offsets":[1,2])", R"("shape":[1],"data_offsets":[2,3])", 3),
              HasSubstr("bytes 0 to 1"));
  EXPECT_THAT(two(R"("shape":[1],"data_offsets":[0,1])", R"("shape":[1],"data_offsets":[1,2])", 5),
              HasSubstr("3 bytes at the end belong to no tensor"));
  EXPECT_THAT(header_error("{}", 1), HasSubstr("1 bytes at the end"));
}

/// Every file that is cut short anywhere is refused.
TEST(Safetensors, RefusesEveryTruncation) {
  const std::string file = file_bytes(R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
                                      R"("b":{"dtype":"U8","shape":[3],"data_offsets":[16,19]}})",
                                      19);
  EXPECT_NO_THROW(parse_safetensors(as_bytes(file), "f", nullptr));
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_THROW(parse_safetensors(as_bytes(std::string_view(file).substr(0, size)), "f", nullptr),
                 Error)
        << size;
  }
}

std::vector<TensorView> sample_tensors(std::vector<std::string>& storage) {
  storage = {std::string("abc"), std::string(16, 'x'), std::string(), std::string(8, 'y'),
             std::string(2, 'z')};
  const std::vector<TensorInfo> infos = {{"bytes", FileDType::kU8, {3}},
                                         {"layer.weight", FileDType::kF32, {2, 2}},
                                         {"none", FileDType::kF64, {0, 5}},
                                         {"ünï \"quoted\"\n", FileDType::kF64, {}},
                                         {"half", FileDType::kBF16, {1}}};
  std::vector<TensorView> views;
  for (size_t i = 0; i < infos.size(); ++i) {
    TensorView view;
    static_cast<TensorInfo&>(view) = infos[i];
    view.data = as_bytes(storage[i]);
    views.push_back(view);
  }
  return views;
}

TEST(WriteSafetensors, ReadsBackTheSame) {
  const ScratchFolder folder;
  std::vector<std::string> storage;
  const std::vector<TensorView> views = sample_tensors(storage);
  write_safetensors(folder / "m.safetensors", views, {{"format", "pt"}, {"step", "7"}});
  const SafetensorsFile file(folder / "m.safetensors");
  ASSERT_EQ(file.tensors().size(), views.size());
  EXPECT_EQ(file.metadata(), (Metadata{{"format", "pt"}, {"step", "7"}}));
  for (const TensorView& view : views) {
    const TensorView& read = file.at(view.name);
    EXPECT_EQ(read.dtype, view.dtype);
    EXPECT_EQ(read.shape, view.shape);
    EXPECT_EQ(as_text(read.data), as_text(view.data));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(read.data.data()) % size_of(read.dtype), 0u) << view.name;
  }
  // Larger elements first, so that all are aligned.
  std::vector<std::string> order;
  for (const TensorView& tensor : file.tensors()) {
    order.push_back(tensor.name);
  }
  EXPECT_THAT(order, ElementsAre("none", "ünï \"quoted\"\n", "layer.weight", "half", "bytes"));
  EXPECT_EQ(file.find("absent"), nullptr);
  EXPECT_THAT(error_of([&] { file.at("absent"); }), HasSubstr("has no tensor \"absent\""));
}

TEST(WriteSafetensors, MovedFileKeepsItsViews) {
  const ScratchFolder folder;
  std::vector<std::string> storage;
  write_safetensors(folder / "m.safetensors", sample_tensors(storage));
  SafetensorsFile file(folder / "m.safetensors");
  const SafetensorsFile moved(std::move(file));
  EXPECT_EQ(as_text(moved.at("bytes").data), "abc");
}

TEST(WriteSafetensors, SameInputGivesTheSameFile) {
  const ScratchFolder folder;
  std::vector<std::string> storage;
  write_safetensors(folder / "a", sample_tensors(storage));
  write_safetensors(folder / "b", sample_tensors(storage));
  EXPECT_EQ(read_file(folder / "a"), read_file(folder / "b"));
}

TEST(WriteSafetensors, RefusesWrongInputAndLeavesNothing) {
  const ScratchFolder folder;
  const std::string four(4, 'x');
  const auto write = [&](const std::vector<TensorInfo>& infos) {
    return error_of([&] {
      write_safetensors(folder / "m", infos, [&](const TensorInfo&) { return as_bytes(four); });
    });
  };
  const TensorInfo a = {"a", FileDType::kF32, {1}};
  EXPECT_THAT(write({a, a}), HasSubstr("two tensors are called \"a\""));
  EXPECT_THAT(write({{"__metadata__", FileDType::kF32, {1}}}), HasSubstr("cannot be called"));
  EXPECT_THAT(write({a, {"b", FileDType::kF32, {2}}}),
              HasSubstr("tensor \"b\" of F32 [2] takes 8 bytes, not 4"));
  EXPECT_THAT(write({{"b", FileDType::kF32, {-1}}}), HasSubstr("dimension -1 is negative"));
  EXPECT_THAT(write({{"\xff", FileDType::kF32, {1}}}), HasSubstr("not UTF-8"));
  EXPECT_THAT(folder.names(), ::testing::IsEmpty());
}

/// Files that the reference implementation wrote.
TEST(Safetensors, ReadsTheGoldens) {
  const SafetensorsFile file(std::filesystem::path(MDN_TEST_DATA) /
                             "goldens/mdn/golden.safetensors");
  EXPECT_EQ(file.metadata().at("prefill"), "84");
  const TensorView& logits = file.at("decode_logits");
  EXPECT_EQ(logits.dtype, FileDType::kF32);
  EXPECT_EQ(logits.shape, (std::vector<int64_t>{2, 17, 256}));
  EXPECT_EQ(file.at("input_ids").dtype, FileDType::kI32);
}

}  // namespace
}  // namespace mdn

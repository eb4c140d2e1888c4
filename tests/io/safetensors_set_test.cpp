#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "mdn/io/json.h"
#include "mdn/io/safetensors.h"
#include "tests/io/scratch.h"

namespace mdn {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// Five tensors of 40 bytes, each filled with its own number.
const std::vector<TensorInfo> kInfos = {{"embed", FileDType::kF32, {10}},
                                        {"a.weight", FileDType::kF32, {2, 5}},
                                        {"a.bias", FileDType::kF64, {5}},
                                        {"b.weight", FileDType::kI32, {10}},
                                        {"head", FileDType::kU8, {40}}};

std::vector<std::string> write_model(const std::filesystem::path& folder, uint64_t max_bytes) {
  std::string bytes;
  return write_model_safetensors(
      folder, kInfos,
      [&](const TensorInfo& info) {
        const auto index = static_cast<char>(
            std::find_if(kInfos.begin(), kInfos.end(),
                         [&](const TensorInfo& other) { return other.name == info.name; }) -
            kInfos.begin());
        bytes.assign(byte_count(info), index);
        return as_bytes(bytes);
      },
      max_bytes);
}

void expect_complete(const SafetensorsSet& set) {
  EXPECT_EQ(set.tensors().size(), kInfos.size());
  for (size_t i = 0; i < kInfos.size(); ++i) {
    const TensorView& tensor = set.at(kInfos[i].name);
    EXPECT_EQ(tensor.shape, kInfos[i].shape);
    EXPECT_EQ(as_text(tensor.data), std::string(40, static_cast<char>(i)));
  }
}

void edit_index(const std::filesystem::path& folder, const std::function<void(Json&)>& edit) {
  Json index = read_json(folder / kModelIndexFile);
  edit(index);
  write_file_atomically(folder / kModelIndexFile, index.dump());
}

TEST(SafetensorsSet, SingleFile) {
  const ScratchFolder folder;
  EXPECT_THAT(write_model(folder.path(), 200), ElementsAre(kModelFile));
  EXPECT_THAT(folder.names(), ElementsAre(kModelFile));
  expect_complete(SafetensorsSet(folder.path()));
  expect_complete(SafetensorsSet(folder / kModelFile));
}

TEST(SafetensorsSet, ShardsAndIndex) {
  const ScratchFolder folder;
  EXPECT_THAT(write_model(folder.path(), 80),
              ElementsAre("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                          "model-00003-of-00003.safetensors", kModelIndexFile));
  const SafetensorsSet set(folder.path());
  expect_complete(set);
  expect_complete(SafetensorsSet(folder / kModelIndexFile));
  EXPECT_EQ(set.files().size(), 3u);
  EXPECT_EQ(set.metadata().at("format"), "pt");
  const Json index = read_json(folder / kModelIndexFile);
  EXPECT_EQ(index["metadata"]["total_size"], 200);
  EXPECT_EQ(index["weight_map"]["embed"], "model-00001-of-00003.safetensors");
  EXPECT_EQ(index["weight_map"]["a.bias"], "model-00002-of-00003.safetensors");
  EXPECT_EQ(index["weight_map"]["head"], "model-00003-of-00003.safetensors");
  EXPECT_EQ(set.find("absent"), nullptr);
  EXPECT_THAT(error_of([&] { set.at("absent"); }),
              HasSubstr("has no tensor \"absent\" among its 5"));
}

TEST(SafetensorsSet, TensorLargerThanAShardStandsAlone) {
  const ScratchFolder folder;
  EXPECT_EQ(write_model(folder.path(), 1).size(), 6u);
  expect_complete(SafetensorsSet(folder.path()));
}

TEST(SafetensorsSet, NewSaveRemovesTheOldOnesFiles) {
  const ScratchFolder folder;
  write_file_atomically(folder / "model-card.md", "kept");
  write_file_atomically(folder / "adapter_model.safetensors", "kept");
  write_model(folder.path(), 80);
  write_model(folder.path(), 120);
  EXPECT_THAT(folder.names(),
              ElementsAre("adapter_model.safetensors", "model-00001-of-00002.safetensors",
                          "model-00002-of-00002.safetensors", "model-card.md", kModelIndexFile));
  expect_complete(SafetensorsSet(folder.path()));
  write_model(folder.path(), 1000);
  EXPECT_THAT(folder.names(),
              ElementsAre("adapter_model.safetensors", "model-card.md", kModelFile));
  expect_complete(SafetensorsSet(folder.path()));
}

TEST(SafetensorsSet, RefusesNeitherAndBoth) {
  const ScratchFolder folder;
  EXPECT_THAT(error_of([&] { SafetensorsSet{folder.path()}; }), HasSubstr("holds neither"));
  write_model(folder.path(), 80);
  std::filesystem::copy_file(folder / "model-00001-of-00003.safetensors", folder / kModelFile);
  EXPECT_THAT(error_of([&] { SafetensorsSet{folder.path()}; }), HasSubstr("holds both"));
}

TEST(SafetensorsSet, NamesMissingAndMisplacedTensors) {
  const ScratchFolder folder;
  write_model(folder.path(), 80);
  const auto error = [&] { return error_of([&] { SafetensorsSet{folder.path()}; }); };
  const std::string index = read_file(folder / kModelIndexFile);
  const auto restore = [&] { write_file_atomically(folder / kModelIndexFile, index); };

  edit_index(folder.path(), [](Json& json) { json["weight_map"].erase("a.bias"); });
  EXPECT_THAT(error(),
              HasSubstr("model-00002-of-00003.safetensors: holds tensor \"a.bias\", which"));
  restore();
  edit_index(folder.path(),
             [](Json& json) { json["weight_map"]["extra"] = "model-00002-of-00003.safetensors"; });
  EXPECT_THAT(error(), HasSubstr("model-00002-of-00003.safetensors: lacks tensor \"extra\""));
  restore();
  edit_index(folder.path(), [](Json& json) {
    json["weight_map"]["head"] = "model-00001-of-00003.safetensors";
    json["weight_map"]["embed"] = "model-00003-of-00003.safetensors";
  });
  EXPECT_THAT(error(), HasSubstr("which"));
  restore();
  edit_index(folder.path(), [](Json& json) { json["weight_map"]["head"] = "../elsewhere"; });
  EXPECT_THAT(error(), HasSubstr("a plain file name is needed"));
  restore();
  edit_index(folder.path(), [](Json& json) { json["weight_map"]["head"] = 3; });
  EXPECT_THAT(error(), HasSubstr("\"head\" is 3; it must be a string"));
  restore();
  edit_index(folder.path(), [](Json& json) { json["weight_map"] = Json::object(); });
  EXPECT_THAT(error(), HasSubstr("names no tensor"));
  restore();
  std::filesystem::remove(folder / "model-00002-of-00003.safetensors");
  EXPECT_THAT(error(), HasSubstr("model-00002-of-00003.safetensors: cannot open"));
}

TEST(SafetensorsSet, RefusesATensorInTwoShards) {
  const ScratchFolder folder;
  write_model(folder.path(), 80);
  // The second shard's content again under the third's name.
  std::filesystem::copy_file(folder / "model-00002-of-00003.safetensors",
                             folder / "model-00003-of-00003.safetensors",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_THAT(error_of([&] { SafetensorsSet{folder.path()}; }),
              HasSubstr("tensor \"a.bias\" stands in two shards"));
}

TEST(SafetensorsSet, TruncatedShardIsFound) {
  const ScratchFolder folder;
  write_model(folder.path(), 80);
  const std::filesystem::path shard = folder / "model-00002-of-00003.safetensors";
  std::filesystem::resize_file(shard, std::filesystem::file_size(shard) - 1);
  EXPECT_THAT(error_of([&] { SafetensorsSet{folder.path()}; }), HasSubstr("truncated?"));
}

}  // namespace
}  // namespace mdn

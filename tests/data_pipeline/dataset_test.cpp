#include "mdn/data/dataset.h"

#include "tests/data_pipeline/fixtures.h"

namespace mdn::data {
namespace {

using testing::HasSubstr;

class Dataset : public FolderTest {
 protected:
  std::filesystem::path data() const { return folder_ / "data"; }
  std::string open_error(Verify verify = Verify::kFull) const {
    return error_of([&] { TokenDataset(data(), verify); });
  }
  /// Replaces the first `from` in the manifest.
  void edit_manifest(const std::string& from, const std::string& to) const {
    std::string text = read_file(data() / kManifestFile);
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    write_file_atomically(data() / kManifestFile, text.replace(at, from.size(), to));
  }
};

TEST_F(Dataset, JoinsShardsToOneStream) {
  const auto documents = counted_documents({3, 4, 1, 9, 2, 2}, 100);
  write_dataset(data(), documents, {1, 2}, 65536, 5);
  const TokenDataset dataset(data());
  const TokenSplit& train = dataset.train();
  ASSERT_EQ(dataset.manifest().train.shards.size(), 4U);  // 3 | 4 1 | 9 | 2 2
  EXPECT_EQ(train.tokens(), 21);
  EXPECT_EQ(train.documents(), 6);
  EXPECT_EQ(train.text_bytes(), 21);
  EXPECT_EQ(dataset.val().tokens(), 2);
  std::vector<int64_t> all(21);
  train.read(0, all);
  for (int64_t i = 0; i < 21; ++i) {
    EXPECT_EQ(all[static_cast<size_t>(i)], 100 + i);
  }
  std::vector<int64_t> part(10);
  train.read(6, part);
  EXPECT_EQ(part.front(), 106);
  EXPECT_EQ(part.back(), 115);
  const std::vector<int64_t> starts = {0, 3, 7, 8, 17, 19, 21};
  for (int64_t d = 0; d <= 6; ++d) {
    EXPECT_EQ(train.document_start(d), starts[static_cast<size_t>(d)]);
  }
  for (int64_t at = 0; at < 21; ++at) {
    const int64_t d = train.document_of(at);
    EXPECT_LE(train.document_start(d), at);
    EXPECT_GT(train.document_start(d + 1), at);
  }
  EXPECT_THROW(train.read(12, part), Error);
  EXPECT_THROW(train.document_of(21), Error);
  EXPECT_THROW(train.document_start(7), Error);
}

TEST_F(Dataset, NamesWhatIsMissing) {
  EXPECT_THAT(open_error(), HasSubstr("is no folder"));
  std::filesystem::create_directory(data());
  EXPECT_THAT(open_error(), HasSubstr("has no manifest.json"));
  write_dataset(data(), counted_documents({5}));
  std::filesystem::remove(data() / "train-00000.mdnt");
  EXPECT_THAT(open_error(), HasSubstr("train-00000.mdnt: cannot open"));
}

TEST_F(Dataset, FindsShardsOfOtherDataSets) {
  const auto swap_in = [&](const std::filesystem::path& other) {
    std::filesystem::copy_file(other / "train-00000.mdnt", data() / "train-00000.mdnt",
                               std::filesystem::copy_options::overwrite_existing);
  };
  write_dataset(data(), counted_documents({5, 6}));
  write_dataset(folder_ / "other", counted_documents({6, 5}));
  swap_in(folder_ / "other");
  EXPECT_THAT(open_error(Verify::kStructure), HasSubstr("not the shard that was prepared"));
  write_dataset(folder_ / "longer", counted_documents({5, 7}));
  swap_in(folder_ / "longer");
  EXPECT_THAT(open_error(), HasSubstr("holds 12 tokens, and manifest.json says 11"));
  write_dataset(folder_ / "wide", counted_documents({5, 6}), {}, 70000);
  swap_in(folder_ / "wide");
  EXPECT_THAT(open_error(), HasSubstr("holds 70000 vocabulary entries"));
  write_dataset(data(), counted_documents({5, 6}));
  edit_manifest("\"hash\": \"ab", "\"hash\": \"cd");
  EXPECT_THAT(open_error(), HasSubstr("was made with the tokenizer abab"));
}

TEST_F(Dataset, FindsCorruptTokensWhenItIsOpened) {
  write_dataset(data(), counted_documents({50}));
  std::string bytes = read_file(data() / "train-00000.mdnt");
  bytes[kShardHeaderBytes + 20] ^= 1;
  write_file_atomically(data() / "train-00000.mdnt", bytes);
  EXPECT_THAT(open_error(), HasSubstr("do not match their checksum"));
  EXPECT_EQ(open_error(Verify::kStructure), "");
}

TEST_F(Dataset, RefusesWrongManifests) {
  const struct {
    const char* from;
    const char* to;
    const char* message;
  } cases[] = {
      {"\"format\": \"mdn-token-shards\"", "\"format\": \"other\"", "\"format\" is \"other\""},
      {"\"version\": 1", "\"version\": 2", "\"version\" is 2; it must be 1"},
      {"\"seed\": 0", "\"seed\": -1", "\"seed\" is -1"},
      {"\"seed\": 0", "\"seed\": 0, \"sead\": 1", "unknown key \"sead\""},
      {"\"seed\": 0", "\"seed\": 0, \"seed\": 0", "stands twice"},
      {"\"file\": \"train-00000.mdnt\"", "\"file\": \"../train-00000.mdnt\"", "without a folder"},
      {"\"file\": \"train-00000.mdnt\"", "\"file\": \"\"", "without a folder"},
      {"\"file\": \"val-00000.mdnt\"", "\"file\": \"train-00000.mdnt\"", "no other shard has"},
      {"\"documents\": 2", "\"documents\": 3", "the sum over its shards"},
      {"\"tokens\": 7", "\"tokens\": 8", "the sum over its shards"},
      {"\"text_bytes\": 7", "\"text_bytes\": 7.5", "\"text_bytes\" is 7.5"},
      {"\"checksum\": \"", "\"checksum\": \"zz", "64 lower-case hexadecimal digits"},
      {"\"splits\"", "\"split\"", "unknown key \"split\""},
      {"\"vocab_size\": 65536", "\"vocab_size\": 0", "\"vocab_size\" is 0"},
      {"\"bos\": false", "\"bos\": 0", "\"bos\" is 0; it must be true or false"},
      {"\"split_by\": \"document\"", "\"split_by\": \"line\"", "\"split_by\" is \"line\""},
      {"\"sources\": []", "\"sources\": [{\"path\": \"a\"}]", "source 0: key"},
      {"}", "", "not valid JSON"},
  };
  for (const auto& wrong : cases) {
    write_dataset(data(), counted_documents({3, 4}), {1, 2, 3});
    edit_manifest(wrong.from, wrong.to);
    EXPECT_THAT(open_error(), HasSubstr(wrong.message)) << wrong.from;
  }
}

TEST_F(Dataset, DigestChangesWithTheDataAlone) {
  write_dataset(data(), counted_documents({3, 4}));
  const std::string digest = TokenDataset(data()).train().digest();
  write_dataset(folder_ / "same", counted_documents({3, 4}), {5});
  EXPECT_EQ(TokenDataset(folder_ / "same").train().digest(), digest);
  write_dataset(folder_ / "other", counted_documents({4, 3}));
  EXPECT_NE(TokenDataset(folder_ / "other").train().digest(), digest);
}

TEST_F(Dataset, WriterNeverTouchesForeignFolders) {
  const DatasetWriter::Options options{.format = {}, .shard_tokens = 10, .replace = true};
  std::filesystem::create_directory(data());
  write("data/notes.txt", "mine");
  EXPECT_THAT(error_of([&] { DatasetWriter(data(), options); }), HasSubstr("holds notes.txt"));
  EXPECT_EQ(read_file(data() / "notes.txt"), "mine");
  std::filesystem::remove(data() / "notes.txt");
  write_dataset(data(), counted_documents({3}));
  EXPECT_THAT(error_of([&] { DatasetWriter(data(), {.format = {}}); }), HasSubstr("--replace"));
  { DatasetWriter unfinished(data(), options); }
  EXPECT_EQ(TokenDataset(data()).train().tokens(), 3);  // the old one stayed
  write_dataset(data(), counted_documents({4}));
  EXPECT_EQ(TokenDataset(data()).train().tokens(), 4);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1);
  EXPECT_THROW(DatasetWriter(folder_ / "x", {.format = {}, .shard_tokens = 0}), Error);
}

TEST_F(Dataset, WriterTakesRelativeNamesAndLinks) {
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(folder_);
  for (const char* name : {"one", "two/", "./three", "new/four", "new/../five"}) {
    write_dataset(name, counted_documents({3}));
    EXPECT_EQ(TokenDataset(name).train().tokens(), 3) << name;
  }
  std::filesystem::create_directory_symlink(folder_ / "one", folder_ / "link");
  write_dataset("link", counted_documents({4}));
  EXPECT_TRUE(std::filesystem::is_symlink(folder_ / "link"));
  EXPECT_EQ(TokenDataset("one").train().tokens(), 4);
  std::filesystem::current_path(before);
}

TEST_F(Dataset, WriterSaysWhichFolderItCannotMake) {
  write("file", "x");
  EXPECT_THAT(error_of([&] { DatasetWriter(folder_ / "file" / "a" / "data", {.format = {}}); }),
              HasSubstr("Not a directory"));
}

TEST_F(Dataset, WriterRemovesWhatAKilledProcessLeft) {
  std::filesystem::create_directory(folder_ / ".data.partial");
  write(".data.partial/train-00000.mdnt", "half");
  write_dataset(data(), counted_documents({3}));
  EXPECT_EQ(TokenDataset(data()).train().tokens(), 3);
  EXPECT_FALSE(std::filesystem::exists(folder_ / ".data.partial"));
}

}  // namespace
}  // namespace mdn::data

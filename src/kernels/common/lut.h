// The form in which a layout reaches the kernels: two integer tensors, written by
// blocksparse/layout.py.
//
//   plan  int32[kPlanHeader + kPlanSection * sections], host memory: sizes, and each section of
//   `lut` lut   int64[lut_size], the device's memory: the sections, one after the other
//
// The host reads only the plan and the kernels only the lut, so a step copies nothing. Both are
// inputs of an op: a layout can change between steps without a new graph, and a kernel with another
// tiling adds a section, not an input. (int64, because TensorFlow keeps int32 constants of a GPU
// graph in host memory.)
//
// Kernels check each entry against the layout's sizes and skip what is out of range: a damaged
// table gives wrong numbers, never a wrong address.
#ifndef BLOCKSPARSE_KERNELS_COMMON_LUT_H_
#define BLOCKSPARSE_KERNELS_COMMON_LUT_H_

#include <cstdint>
#include <string>

#include "src/kernels/common/status.h"

#ifdef __CUDACC__
#define BLOCKSPARSE_HOST_DEVICE __host__ __device__
#else
#define BLOCKSPARSE_HOST_DEVICE
#endif

namespace blocksparse {

constexpr int32_t kPlanVersion = 2;

// Fields of the plan's header.
enum PlanField : int {
  kPlanFieldVersion = 0,
  kPlanFieldBlockSize,
  kPlanFieldInBlocks,
  kPlanFieldOutBlocks,
  kPlanFieldNumBlocks,
  kPlanFieldLutSize,
  kPlanFieldNumSections,
  kPlanHeader,  // number of header fields; then the fields of each section
};
// Host parameters of a section: sizes that launch its kernel. Each kernel says what they are.
constexpr int kPlanParameters = 3;
// Fields of a section: its number, offset, size, parameters.
constexpr int kPlanSection = 3 + kPlanParameters;

// Sections of the lut. "Entries" are pairs of int32, packed low word first into an int64.
enum Section : int32_t {
  kSectionFpropPtr = 0,  // int64[out_blocks + 1]  first entry of each output block column
  kSectionFpropEntries =
      1,  // {input block, block}[num_blocks], sorted by (output block, input block)
  kSectionFpropOrder = 2,  // int64[out_blocks]  output block columns, the longest first
  kSectionDxPtr = 3,       // the same with input and output exchanged
  kSectionDxEntries =
      4,  // {output block, block}[num_blocks], sorted by (input block, output block)
  kSectionDxOrder = 5,
  kSectionBlocks = 6,  // {input block, output block}[num_blocks]  coordinates in storage order
  kSectionDwItems =
      7,  // {first entry, count}  runs of fprop entries of one column, kDwTileRows rows at most
  kNumRequiredSections,

  // The layout may lack these; the kernels that read them document and check their contents.
  kSectionWideFprop = 8,
  kSectionWideDx,
  kSectionPackedFprop,
  kSectionPackedDx,
  kSectionDwRegions0,
  kSectionDwRegions1,
  kSectionWideFloatFprop,
  kSectionWideFloatDx,
  kNumSections,
};

// Rows of dw (blocks of one column, stacked) that one item of kSectionDwItems may hold.
constexpr int kDwTileRows = 128;

struct LutEntry {
  int32_t index;  // the block coordinate that the section documents
  int32_t block;  // the second word
};
static_assert(sizeof(LutEntry) == sizeof(int64_t), "an entry is one element of the lut");

// One direction of the product: which blocks make up each block column of the result.
struct Direction {
  const int64_t* ptr;
  const LutEntry* entries;
  const int64_t* order;
  int64_t num_inputs;   // in blocks
  int64_t num_outputs;  // in blocks
};

// Entries [begin, end) of one block column.
struct EntryRange {
  int64_t begin;
  int64_t end;
};

// The entries of the output block column `column`; empty where the table is damaged.
BLOCKSPARSE_HOST_DEVICE inline EntryRange ColumnEntries(const Direction& direction,
                                                        int64_t num_blocks, int64_t column) {
  const int64_t begin = direction.ptr[column];
  const int64_t end = direction.ptr[column + 1];
  return begin >= 0 && begin <= end && end <= num_blocks ? EntryRange{begin, end}
                                                         : EntryRange{0, 0};
}

// Whether an entry names an existing input block and an existing weight block.
BLOCKSPARSE_HOST_DEVICE inline bool IsValid(LutEntry entry, int64_t num_inputs,
                                            int64_t num_blocks) {
  return entry.index >= 0 && entry.index < num_inputs && entry.block >= 0 &&
         entry.block < num_blocks;
}

// An optional section; size 0 where the layout lacks it.
struct Table {
  const int64_t* data;
  int64_t size;
  int32_t parameters[kPlanParameters];
};

struct Layout {
  int block_size;
  int64_t in_blocks;
  int64_t out_blocks;
  int64_t num_blocks;
  Direction fprop;
  Direction dx;
  const LutEntry* blocks;
  const LutEntry* dw_items;
  int64_t num_dw_items;
  Table tables[kNumSections - kNumRequiredSections];

  const Table& OptionalTable(Section section) const {
    return tables[section - kNumRequiredSections];
  }
};

// Reads the plan and finds the sections in `lut`, whose contents are not touched. Fails unless
// every section is there with the size that the header implies and lies inside `lut_size`.
inline Status ParseLayout(const int32_t* plan, int64_t plan_size, const int64_t* lut,
                          int64_t lut_size, Layout* layout) {
  if (plan_size < kPlanHeader || plan[kPlanFieldVersion] != kPlanVersion)
    return Invalid("plan must be made by SparsityLayout of this version (" +
                   std::to_string(kPlanVersion) + "). Received: " + std::to_string(plan_size) +
                   " elements" +
                   (plan_size > 0 ? ", version " + std::to_string(plan[0]) : std::string()));
  const int64_t num_sections = plan[kPlanFieldNumSections];
  if (num_sections < 0 || plan_size != kPlanHeader + kPlanSection * num_sections)
    return Invalid("plan must have " + std::to_string(kPlanHeader) + " + " +
                   std::to_string(kPlanSection) +
                   " * sections elements. Received: " + std::to_string(plan_size) + " for " +
                   std::to_string(num_sections) + " sections");
  if (plan[kPlanFieldLutSize] != lut_size)
    return Invalid("lut must have the " + std::to_string(plan[kPlanFieldLutSize]) +
                   " elements that the plan names. Received: " + std::to_string(lut_size));
  layout->block_size = plan[kPlanFieldBlockSize];
  layout->in_blocks = plan[kPlanFieldInBlocks];
  layout->out_blocks = plan[kPlanFieldOutBlocks];
  layout->num_blocks = plan[kPlanFieldNumBlocks];
  if (layout->in_blocks < 1 || layout->out_blocks < 1 || layout->num_blocks < 1 ||
      layout->block_size < 1)
    return Invalid("plan must name at least one block in each direction");

  const int64_t* found[kNumRequiredSections] = {};
  int64_t sizes[kNumRequiredSections] = {};
  for (Table& table : layout->tables) table = {};
  for (int64_t i = 0; i < num_sections; ++i) {
    const int32_t* fields = plan + kPlanHeader + kPlanSection * i;
    const int32_t section = fields[0];
    const int64_t offset = fields[1];
    const int64_t size = fields[2];
    if (offset < 0 || size < 0 || offset + size > lut_size)
      return Invalid("section " + std::to_string(section) + " must lie inside the lut");
    if (section < 0 || section >= kNumSections) continue;  // for a kernel that is not here
    if (section < kNumRequiredSections) {
      found[section] = lut + offset;
      sizes[section] = size;
    } else {
      Table& table = layout->tables[section - kNumRequiredSections];
      table.data = lut + offset;
      table.size = size;
      for (int j = 0; j < kPlanParameters; ++j) table.parameters[j] = fields[3 + j];
    }
  }
  const int64_t expected[kNumRequiredSections] = {
      layout->out_blocks + 1, layout->num_blocks, layout->out_blocks, layout->in_blocks + 1,
      layout->num_blocks,     layout->in_blocks,  layout->num_blocks, sizes[kSectionDwItems],
  };
  for (int s = 0; s < kNumRequiredSections; ++s) {
    if (found[s] == nullptr || sizes[s] != expected[s])
      return Invalid("section " + std::to_string(s) + " of the lut must have " +
                     std::to_string(expected[s]) +
                     " elements. Received: " + std::to_string(sizes[s]));
  }
  const auto entries = [&](Section s) { return reinterpret_cast<const LutEntry*>(found[s]); };
  layout->fprop = {found[kSectionFpropPtr], entries(kSectionFpropEntries),
                   found[kSectionFpropOrder], layout->in_blocks, layout->out_blocks};
  layout->dx = {found[kSectionDxPtr], entries(kSectionDxEntries), found[kSectionDxOrder],
                layout->out_blocks, layout->in_blocks};
  layout->blocks = entries(kSectionBlocks);
  layout->dw_items = entries(kSectionDwItems);
  layout->num_dw_items = sizes[kSectionDwItems];
  return Status();
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_LUT_H_

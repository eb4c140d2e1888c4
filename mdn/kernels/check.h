// What the operators' own checks are made of. `op` names the operator in the message. Nothing
// behind a pointer is read but cu_seqlens and slots, which must be readable by the host.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels {

void check_positive(const char* op, const char* name, int64_t value);
void check_heads(const char* op, int64_t H, int64_t HV);
/// The tensor's size in bytes fits a signed 64-bit offset.
void check_size(const char* op, const char* name, std::initializer_list<int64_t> sizes);
void check_scale(const char* op, double scale);
void check_given(const char* op, const char* name, const void* pointer);
/// All of the above that a problem allows to check.
void check_problem(const char* op, const MomentumDeltaRuleProblem& problem);
/// The same of a step.
void check_step(const char* op, int64_t B, int64_t H, int64_t HV, int64_t K, int64_t V,
                double scale);

/// cu_seqlens starts at 0, never decreases and ends at T.
void check_cu_seqlens(const char* op, const MomentumDeltaRuleProblem& problem);
/// No slot is given twice; null: nothing to check.
void check_slots(const char* op, const int64_t* slots, int64_t B);

}  // namespace mdn::kernels

// The tables that the kernel files of one level end with, for level_table.cpp.
#pragma once
#include "core/levels.h"

namespace ucmkd {
namespace UK_LEVEL {

extern const ByType<sinkhorn::ForwardKernels> forward_kernels;
extern const ByType<sinkhorn::ForwardKernels> unbalanced_kernels;
extern const ByType<sinkhorn::AdjointKernels> adjoint_kernels;
extern const ByType<sinkhorn::GradientKernels> gradient_kernels;
extern const ByType<sinkhorn::PanelKernels> panel_kernels;
extern const ByType<cost::Kernels> cost_kernels;
extern const ByType<product::Kernels> product_kernels;
extern const ByType<label_transport::Kernels> label_transport_kernels;
extern const ByType<assign::Kernels> assign_kernels;
extern const ByType<doubly_stochastic::Kernels> doubly_stochastic_kernels;
extern const ByType<samples_loss::Kernels> samples_loss_kernels;

}  // namespace UK_LEVEL
}  // namespace ucmkd

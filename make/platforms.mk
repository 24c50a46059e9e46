# SPDX-License-Identifier: MIT
#
# Every target that a compiler here can build for.

##@ Platforms

platforms: ## builds for every target, runs what can run here, prints a table (PLATFORMS='Windows': some)
	@PYTHON='$(or $(wildcard $(abspath $(BUILD))/platforms/bin/python),python3)' JOBS=$(JOBS) \
		ZIG_GLOBAL_CACHE_DIR='$(abspath $(BUILD))/platforms/zig' tools/platforms.sh $(if $(PLATFORMS),'$(PLATFORMS)')

sve: ## on paper: the plainest loops with vectors of SVE and of NEON, on three Arm cores
	@tools/sve.sh

# One static file to copy to a board and to run there.
BOARD = aarch64
board_triple = $(if $(filter armhf,$(BOARD)),arm-linux-gnueabihf,$(BOARD)-linux-gnu)
board: ## bits and speed in one static program for a board, build/bnorm-board-aarch64 (BOARD=armhf, riscv64, x86_64)
	$(MAKE) BUILD=$(BUILD)/board/$(BOARD) CC=$(board_triple)-gcc AR=$(board_triple)-ar LDFLAGS=-static SLEEF=0 \
		$(BUILD)/board/$(BOARD)/bnorm-board
	cp $(BUILD)/board/$(BOARD)/bnorm-board $(BUILD)/bnorm-board-$(BOARD)
	@echo 'Copy $(BUILD)/bnorm-board-$(BOARD) to the board and run it there; here: qemu-$(subst armhf,arm,$(BOARD)) runs it.'

$(BUILD)/bnorm-board: $(call objects,tools/board.c) $(BUILD)/tools/verify-main.o $(peers_shared) $(static_lib)
	$(call say,LINK) $(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(libs)

$(BUILD)/tools/verify-main.o: tools/verify.c tools/verify_hashes.inc tests/call.h $(BUILD)/flags
	$(call say,CC) $(CC) $(CFLAGS) $(c_flags) -Dmain=verify_main -c -o $@ $<

.PHONY: platforms sve board

# SPDX-License-Identifier: MIT
#
# Every target that a compiler here can build for.

##@ Platforms

platforms: ## builds for every target, runs what can run here, prints a table (PLATFORMS='Windows': some)
	@tools/platforms.sh $(if $(PLATFORMS),'$(PLATFORMS)')

.PHONY: platforms

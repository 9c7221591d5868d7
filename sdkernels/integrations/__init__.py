"""The engine inside other libraries: TRL's trainers, Liger's modules, Hugging Face models.

Each sub-module imports the library it is about; nothing here is imported by `import sdkernels`.
"""

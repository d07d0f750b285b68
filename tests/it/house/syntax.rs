//! What one file says: its modules, the names that they bring in, the paths that they write.
//!
//! Whatever is compiled for tests alone is left out.

use std::{
    collections::{BTreeSet, HashMap},
    ops::RangeInclusive,
};

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::{
    Attribute, Block, Expr, Item, Meta, Pat, Stmt, UseTree, Visibility,
    spanned::Spanned,
    visit::{self, Visit},
};

/// The segments of a path. A leading `::` is an empty first segment.
pub(crate) type Segments = Vec<String>;

/// What a file says.
#[derive(Debug, Default)]
pub(crate) struct Syntax {
    pub(crate) module: Module,
    pub(crate) functions: Vec<Function>,
    /// The lines of what is compiled for tests alone.
    pub(crate) tests: Vec<RangeInclusive<usize>>,
}

/// What a module says.
#[derive(Debug, Default)]
pub(crate) struct Module {
    pub(crate) name: String,
    /// The names that it defines.
    pub(crate) items: BTreeSet<String>,
    /// The modules that it declares and that are files of their own.
    pub(crate) declared: Vec<String>,
    pub(crate) inline: Vec<Module>,
    pub(crate) uses: Vec<Use>,
    pub(crate) mentions: Vec<Mention>,
}

/// A name that a module brings in.
#[derive(Debug)]
pub(crate) struct Use {
    /// Empty when everything is brought in.
    pub(crate) name: String,
    pub(crate) path: Segments,
    /// Whether others may take it from here.
    pub(crate) passed_on: bool,
    pub(crate) line: usize,
}

/// A path in code.
#[derive(Debug)]
pub(crate) struct Mention {
    pub(crate) path: Segments,
    pub(crate) line: usize,
    pub(crate) by: By,
}

/// How a path is mentioned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// A `use` in a block.
    Use,
    /// A function that is called by its bare name.
    Call,
    Path,
}

/// A function with a body.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) line: usize,
    /// From its signature to its closing brace.
    pub(crate) lines: usize,
}

/// Reads a file.
pub(crate) fn parse(path: &str, text: &str) -> Syntax {
    let file = syn::parse_file(text)
        .unwrap_or_else(|why| panic!("{path}:{}: {why}", why.span().start().line));
    let mut reader = Reader::default();
    for attribute in &file.attrs {
        reader.visit_attribute(attribute);
    }
    reader.module(&file.items);
    reader.syntax
}

#[derive(Default)]
struct Reader {
    /// `syntax.module` is the module that is read now.
    syntax: Syntax,
    /// The names that the blocks around bring in: a path, or none for what they define.
    blocks: Vec<HashMap<String, Option<Segments>>>,
    /// The variables of the functions around.
    variables: Vec<BTreeSet<String>>,
}

impl Reader {
    fn module(&mut self, items: &[Item]) {
        for item in items {
            if !for_tests(attributes(item)) {
                self.syntax.module.items.extend(defined(item));
            }
        }
        for item in items {
            self.visit_item(item);
        }
    }

    /// Leaves out what is for tests alone.
    fn left_out(&mut self, attributes: &[Attribute], what: &impl Spanned) -> bool {
        let out = for_tests(attributes);
        if out {
            // Comments before it are attributes of its too.
            let span = what.span();
            let first = attributes.iter().map(|one| one.pound_token.span.start().line).min();
            self.syntax.tests.push(first.unwrap_or(span.start().line)..=span.end().line);
        }
        out
    }

    fn mention(&mut self, path: Segments, span: Span, by: By) {
        let line = span.start().line;
        let Some(first) = path.first() else { return };
        for block in self.blocks.iter().rev() {
            match block.get(first) {
                // What a block defines is the file's own.
                Some(None) => return,
                Some(Some(brought)) => {
                    let path = brought.iter().chain(&path[1..]).cloned().collect();
                    self.syntax.module.mentions.push(Mention { path, line, by });
                    return;
                }
                None => {}
            }
        }
        self.syntax.module.mentions.push(Mention { path, line, by });
    }

    /// The paths in the tokens of a macro or an attribute. A name by itself may be anything there, and is not a path.
    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let colon = |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            match token {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(ident) => {
                    let mut path = vec![ident.to_string()];
                    while colon(at) && colon(at + 1) {
                        let Some(TokenTree::Ident(next)) = tokens.get(at + 2) else { break };
                        path.push(next.to_string());
                        at += 3;
                    }
                    if path.len() > 1 {
                        self.mention(path, ident.span(), By::Path);
                    }
                }
                _ => {}
            }
        }
    }

    fn function(&mut self, name: &syn::Ident, from: Span, block: &Block) {
        let (line, end) = (from.start().line, block.brace_token.span.close().end().line);
        self.syntax.functions.push(Function {
            name: name.to_string(),
            line,
            lines: end + 1 - line,
        });
    }

    /// Reads a function, and forgets the mentions that are its variables.
    fn with_variables(&mut self, read: impl FnOnce(&mut Self)) {
        self.variables.push(BTreeSet::new());
        let before = self.syntax.module.mentions.len();
        read(self);
        let variables = self.variables.pop().unwrap_or_default();
        let read = self.syntax.module.mentions.split_off(before);
        let is_variable = |one: &Mention| {
            one.by == By::Path && one.path.len() == 1 && variables.contains(&one.path[0])
        };
        self.syntax.module.mentions.extend(read.into_iter().filter(|one| !is_variable(one)));
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        if !self.left_out(attributes(item), item) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let name = item.ident.to_string();
        let Some((_, items)) = &item.content else {
            self.syntax.module.declared.push(name);
            return;
        };
        let inner = Module { name, ..Module::default() };
        let outer = std::mem::replace(&mut self.syntax.module, inner);
        self.module(items);
        let inner = std::mem::replace(&mut self.syntax.module, outer);
        self.syntax.module.inline.push(inner);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let mut uses = Vec::new();
        flatten(&item.tree, &start(item), &mut uses);
        if self.blocks.is_empty() {
            let passed_on = !matches!(item.vis, Visibility::Inherited);
            let uses =
                uses.into_iter().map(|(name, path, line)| Use { name, path, passed_on, line });
            self.syntax.module.uses.extend(uses);
        } else {
            for (_, path, line) in uses {
                self.syntax.module.mentions.push(Mention { path, line, by: By::Use });
            }
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig.ident, item.sig.fn_token.span, &item.block);
        self.with_variables(|reader| visit::visit_item_fn(reader, item));
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig.ident, item.sig.fn_token.span, &item.block);
        self.with_variables(|reader| visit::visit_impl_item_fn(reader, item));
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.sig.ident, item.sig.fn_token.span, block);
        }
        self.with_variables(|reader| visit::visit_trait_item_fn(reader, item));
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let attributes: &[Attribute] = match item {
            syn::ImplItem::Const(item) => &item.attrs,
            syn::ImplItem::Fn(item) => &item.attrs,
            syn::ImplItem::Type(item) => &item.attrs,
            syn::ImplItem::Macro(item) => &item.attrs,
            _ => &[],
        };
        if !self.left_out(attributes, item) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast syn::TraitItem) {
        let attributes: &[Attribute] = match item {
            syn::TraitItem::Const(item) => &item.attrs,
            syn::TraitItem::Fn(item) => &item.attrs,
            syn::TraitItem::Type(item) => &item.attrs,
            syn::TraitItem::Macro(item) => &item.attrs,
            _ => &[],
        };
        if !self.left_out(attributes, item) {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !self.left_out(&field.attrs, field) {
            visit::visit_field(self, field);
        }
    }

    fn visit_field_value(&mut self, field: &'ast syn::FieldValue) {
        if !self.left_out(&field.attrs, field) {
            visit::visit_field_value(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        if !self.left_out(&variant.attrs, variant) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if !self.left_out(&arm.attrs, arm) {
            visit::visit_arm(self, arm);
        }
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if !self.left_out(&local.attrs, local) {
            visit::visit_local(self, local);
        }
    }

    fn visit_expr(&mut self, expr: &'ast Expr) {
        let attributes: &[Attribute] = match expr {
            Expr::Block(expr) => &expr.attrs,
            Expr::If(expr) => &expr.attrs,
            Expr::Call(expr) => &expr.attrs,
            Expr::MethodCall(expr) => &expr.attrs,
            _ => &[],
        };
        if !attributes.is_empty() && self.left_out(attributes, expr) {
            return;
        }
        // `let plan = plan(body)`: what is called is the function, not the variable.
        if let Expr::Call(call) = expr
            && let Expr::Path(path) = &*call.func
            && let Some(name) = path.path.get_ident()
            && path.qself.is_none()
        {
            self.mention(vec![name.to_string()], name.span(), By::Call);
        }
        visit::visit_expr(self, expr);
    }

    fn visit_pat(&mut self, pat: &'ast Pat) {
        if let (Pat::Ident(ident), Some(variables)) = (pat, self.variables.last_mut()) {
            variables.insert(ident.ident.to_string());
        }
        visit::visit_pat(self, pat);
    }

    fn visit_block(&mut self, block: &'ast Block) {
        let mut names = HashMap::new();
        for statement in &block.stmts {
            match statement {
                Stmt::Item(item) if for_tests(attributes(item)) => {}
                Stmt::Item(Item::Use(item)) => {
                    let mut uses = Vec::new();
                    flatten(&item.tree, &start(item), &mut uses);
                    names.extend(uses.into_iter().map(|(name, path, _)| (name, Some(path))));
                }
                Stmt::Item(item) => names.extend(defined(item).map(|name| (name, None))),
                _ => {}
            }
        }
        self.blocks.push(names);
        visit::visit_block(self, block);
        self.blocks.pop();
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if let Some(first) = path.segments.first() {
            self.mention(segments(path), first.ident.span(), By::Path);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, invoked: &'ast syn::Macro) {
        self.visit_path(&invoked.path);
        self.tokens(invoked.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if attribute.path().segments.len() > 1 {
            self.visit_path(attribute.path());
        }
        if let Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone());
        }
    }

    /// `pub(in path)` brings nothing in.
    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {}
}

fn segments(path: &syn::Path) -> Segments {
    let leading = path.leading_colon.as_ref().map(|_| String::new());
    leading.into_iter().chain(path.segments.iter().map(|one| one.ident.to_string())).collect()
}

fn start(item: &syn::ItemUse) -> Segments {
    item.leading_colon.as_ref().map(|_| String::new()).into_iter().collect()
}

/// The names that a `use` brings in, with their paths and lines.
fn flatten(tree: &UseTree, before: &[String], into: &mut Vec<(String, Segments, usize)>) {
    let with = |ident: &syn::Ident| {
        let mut path = before.to_vec();
        // `use a::{self}` is `use a`.
        if ident != "self" || path.is_empty() {
            path.push(ident.to_string());
        }
        path
    };
    match tree {
        UseTree::Path(path) => flatten(&path.tree, &with(&path.ident), into),
        UseTree::Name(name) => {
            let path = with(&name.ident);
            into.push((
                path.last().cloned().unwrap_or_default(),
                path,
                name.ident.span().start().line,
            ));
        }
        UseTree::Rename(rename) => {
            into.push((
                rename.rename.to_string(),
                with(&rename.ident),
                rename.ident.span().start().line,
            ));
        }
        UseTree::Glob(glob) => {
            into.push((String::new(), before.to_vec(), glob.star_token.spans[0].start().line));
        }
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, before, into)),
    }
}

/// The names that an item defines in its module. A module is no such name.
fn defined(item: &Item) -> impl Iterator<Item = String> {
    let name = match item {
        Item::Const(item) => Some(&item.ident),
        Item::Enum(item) => Some(&item.ident),
        Item::Fn(item) => Some(&item.sig.ident),
        Item::Macro(item) => item.ident.as_ref(),
        Item::Static(item) => Some(&item.ident),
        Item::Struct(item) => Some(&item.ident),
        Item::Trait(item) => Some(&item.ident),
        Item::TraitAlias(item) => Some(&item.ident),
        Item::Type(item) => Some(&item.ident),
        Item::Union(item) => Some(&item.ident),
        _ => None,
    };
    name.map(ToString::to_string).into_iter()
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether what has these attributes is compiled for tests alone: by `#[test]`, or by a `#[cfg]` that is
/// false in a build without tests and features.
fn for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.parse_args::<Meta>().is_ok_and(|condition| !holds(&condition))
    })
}

fn holds(condition: &Meta) -> bool {
    let inner = |list: &syn::MetaList| {
        let parse = syn::punctuated::Punctuated::<Meta, syn::Token![,]>::parse_terminated;
        list.parse_args_with(parse)
            .map(|parts| parts.iter().map(holds).collect())
            .unwrap_or_default()
    };
    match condition {
        Meta::Path(path) => !path.is_ident("test"),
        Meta::NameValue(pair) => !pair.path.is_ident("feature"),
        Meta::List(list) => {
            let parts: Vec<bool> = inner(list);
            if list.path.is_ident("not") {
                !parts.contains(&true)
            } else if list.path.is_ident("any") {
                parts.contains(&true)
            } else {
                !parts.contains(&false)
            }
        }
    }
}
